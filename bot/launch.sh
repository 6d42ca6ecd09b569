#!/usr/bin/env bash
# Launches the action's phases, one after the other. Each is a child of its own that knows only what it needs:
#
#   preflight   write token   network      asks whether the target can be published to, before anything is downloaded
#   fetch       read token    network      pins and plans, downloads
#   merge       no token      no network   merges and proves; has the GPU
#   publish     write token   network      uploads and reports; loads no model
#
# A child is a container, or a plain process inside the image and where the package is installed (there, what is said
# of the network and of files is our code's promise, no wall). `launch.sh clean-up` ends what a cancelled job left.
set -euo pipefail

temp=${RUNNER_TEMP:?launch.sh is started by the action, on a runner}
record=$temp/adapter-merge.container # not in the work folder, where a container could write another name
export ADAPTER_MERGE_WORK=${ADAPTER_MERGE_WORK:-$temp/adapter-merge}

# Tokens leave the environment at once; a phase gets back the ones it needs.
write_token=${INPUT_HF_TOKEN:-${HF_TOKEN:-}}
read_token=${INPUT_HF_READ_TOKEN:-${HF_READ_TOKEN:-}}
github_token=${INPUT_GITHUB_TOKEN:-${GITHUB_TOKEN:-}}
id_token=${ACTIONS_ID_TOKEN_REQUEST_TOKEN:-} id_url=${ACTIONS_ID_TOKEN_REQUEST_URL:-}
id_made=${HF_OIDC_ID_TOKEN:-} id_resource=${HF_OIDC_RESOURCE:-}
export -n write_token read_token github_token id_token id_url id_made id_resource
unset INPUT_HF_TOKEN INPUT_HF_READ_TOKEN INPUT_GITHUB_TOKEN HF_TOKEN HF_READ_TOKEN HUGGING_FACE_HUB_TOKEN GITHUB_TOKEN GH_TOKEN \
  ACTIONS_ID_TOKEN_REQUEST_TOKEN ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_RUNTIME_TOKEN HF_OIDC_ID_TOKEN HF_OIDC_RESOURCE

# Of the runner's environment, a container sees these and no others (and every input that is no token).
told=(GITHUB_ACTIONS GITHUB_API_URL GITHUB_EVENT_NAME GITHUB_EVENT_PATH GITHUB_OUTPUT GITHUB_REF GITHUB_REF_NAME
  GITHUB_REF_TYPE GITHUB_REPOSITORY GITHUB_RUN_ATTEMPT GITHUB_RUN_ID GITHUB_SERVER_URL GITHUB_SHA GITHUB_STEP_SUMMARY
  GITHUB_WORKFLOW_REF GITHUB_WORKSPACE RUNNER_DEBUG RUNNER_TEMP ADAPTER_MERGE_WORK HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_DISABLE_XET
  HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ETAG_TIMEOUT HF_XET_HIGH_PERFORMANCE)
# Those with a network also see how this runner gets out. A proxy's address may hold a password: the merge does not get it.
proxies=(HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy)
certificates=(SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE)

say() { # say error|warning|notice WHAT: as a workflow command, which is one line
  local text=${2//'%'/%25}
  text=${text//$'\r'/%0D}
  echo "::$1 title=adapter-merge::${text//$'\n'/%0A}"
}

fail() { # fail CODE WHAT-AND-REMEDY
  say error "$2"
  tell "$2"
  exit "$1"
}

tell() { # tell WHAT: outputs and summary of an end that no phase has told of
  local lt='&lt;' text # by its name: bash 5.2 takes a bare & for what was found
  text=${1//'<'/"$lt"}
  if [[ ! -f ${GITHUB_OUTPUT:-} || $(<"$GITHUB_OUTPUT") == *status* ]]; then return 0; fi
  printf '%s\n' status=failed verified=false >>"$GITHUB_OUTPUT"
  if [[ -f ${GITHUB_STEP_SUMMARY:-} && ${INPUT_REPORT:-} != none ]]; then
    printf '## ✗ Failed: adapter-merge\n\n- %s\n' "$text" >>"$GITHUB_STEP_SUMMARY"
  fi
}

# --- which runtime ------------------------------------------------------------------------------------------------

installed() { # the version that is; -P: a folder named bot in the workspace is not us
  command -v python3 >/dev/null && python3 -P -c 'import importlib.metadata as m; print(m.version("adapter-merge"))' 2>/dev/null
}

choose_runtime() {
  local own there why='as runtime says'
  own=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "${BASH_SOURCE[0]%/*}/__init__.py") # of the action's own checkout
  there=$(installed) || there=
  runtime=${INPUT_RUNTIME:-auto}
  case $runtime in
    auto)
      if [[ -n $there && $there == "$own" ]]; then
        runtime=native why="adapter-merge $there is installed here, which is the action's own version"
      elif [[ -z $there ]]; then
        runtime=docker why="adapter-merge is not installed here"
      elif command -v docker >/dev/null; then
        runtime=docker why="adapter-merge $there is installed here, and the action is $own"
      else
        fail 2 "adapter-merge $there is installed here, the action is $own, and there is no docker on this runner. Install adapter-merge $own, or run the job in the image of the action's own release, or take what is installed by runtime: native."
      fi
      ;;
    native)
      [[ -n $there ]] || fail 2 "runtime is native, but python3 on this runner does not have adapter-merge. Install it with pip in an earlier step, or run the job in its image, or set runtime: docker."
      why+=", with adapter-merge $there"
      [[ $there == "$own" ]] || say warning "adapter-merge $there is installed here, and the action is $own: an input that only one of them knows is not heeded. Install $own, or set runtime: auto."
      ;;
    docker) ;;
    *) fail 2 "runtime is $runtime. Choose auto, native or docker." ;;
  esac
  echo "Runtime $runtime: $why."
}

make_folder() { # make_folder WHERE: its absolute path, in $folder; false where it cannot be written
  local where=${1/#'~/'/"${HOME:-}/"}
  mkdir -p "$where" 2>/dev/null && [[ -w $where ]] && folder=$(cd "$where" && pwd)
}

choose_cache() { # cache-dir, else what the job's environment says, else a folder of ours that stays
  local name folder='' asked=${INPUT_CACHE_DIR:-}
  local folders=(${RUNNER_TOOL_CACHE:+"$RUNNER_TOOL_CACHE/adapter-merge"} "${HOME:-$temp}/.cache/adapter-merge")
  HF_HUB_CACHE=${HF_HUB_CACHE:-${HUGGINGFACE_HUB_CACHE:-}}
  if [[ -n $asked ]]; then
    folders=("$asked")
    [[ -z $HF_HUB_CACHE ]] || say notice "cache-dir wins over HF_HUB_CACHE, which is $HF_HUB_CACHE here."
    HF_HUB_CACHE=
    unset HF_XET_CACHE HF_ASSETS_CACHE
  elif [[ -n ${HF_HOME:-} ]]; then
    folders=("$HF_HOME")
  fi
  unset HUGGINGFACE_HUB_CACHE
  for name in "${folders[@]}"; do if make_folder "$name"; then break; fi; done
  [[ -n $folder ]] || cannot_write "${folders[-1]}"
  export HF_HOME=$folder INPUT_CACHE_DIR=${asked:+$folder}
  if [[ -n $HF_HUB_CACHE ]]; then
    make_folder "$HF_HUB_CACHE" || cannot_write "$HF_HUB_CACHE"
    folder=$(cd "$folder" && pwd -P) # as Python resolves it, before it looks beside it
    export HF_HUB_CACHE=$folder
    # Ours lie beside the downloads, else below HF_HOME: bot/hub/names.py chooses so, too.
    if make_folder "${folder%/*}/adapter-merge"; then beside=$folder; fi
  else
    unset HF_HUB_CACHE
  fi
}

cannot_write() {
  fail 2 "The cache folder $1 cannot be written by $(id -un 2>/dev/null || true). Name another with cache-dir."
}

check_certificates() { # a path that is wrong would end every connection, with words that do not name it
  local name place found
  for name in "${certificates[@]}"; do
    found=
    while IFS= read -r place; do
      [[ -e $place ]] || fail 2 "$name is $place, which is not there. Correct it, or leave it out."
      [[ $place == /* ]] || place=$PWD/$place
      found+=${found:+:}$place
    done < <(places_of "$name")
    if [[ -n $found ]]; then export "$name=$found"; fi
  done
}

places_of() { # places_of VARIABLE: its paths, one a line; a folder of certificates may be several, with colons between them
  local found=${!1:-}
  if [[ $1 == SSL_CERT_DIR ]]; then found=${found//:/$'\n'}; fi
  while IFS= read -r found; do if [[ -n $found ]]; then echo "$found"; fi; done <<<"$found"
}

# --- docker -------------------------------------------------------------------------------------------------------

require_docker() { # the engine answers; its own description in $engine
  command -v docker >/dev/null || fail 6 "There is no docker on this runner. Install Docker, or run the job in the image (container:) or with the package installed, and runtime: native."
  engine=$(docker info --format '{{json .}}' 2>/dev/null) && [[ $engine != *'"ServerErrors":["'* ]] && return
  local said
  said=$(docker info --format '{{json .ServerErrors}}' 2>&1) || said=${said#null$'\n'} # there, or in its error output
  case $said in
    *"permission denied"*) fail 6 "$(id -un 2>/dev/null || true) may not use the Docker socket. Add the runner's user to the group docker and restart the runner, or set runtime: native." ;;
    *) fail 6 "Docker does not answer: ${said//$'\n'/ } Start it, or set runtime: native." ;;
  esac
}

choose_image() { # the one asked for; of this release's two, the one with CUDA where there is a GPU for the merge
  local own asked=${INPUT_IMAGE:-}
  own=$(sed -n '/^  image:/,/^    default:/s/^    default: *"\(.*\)"/\1/p' "${BASH_SOURCE[0]%/*}/../action.yml")
  case ${asked,,} in
    '' | "$own")
      image=$own
      if ((${#gpus[@]})) && [[ ${INPUT_DEVICE:-} != *[Cc][Pp][Uu]* ]]; then image=${CUDA_IMAGE:-$own}; fi
      ;;
    cpu) image=$own ;;
    cuda | gpu) image=${CUDA_IMAGE:-$own} ;;
    *) image=$asked ;;
  esac
  [[ $image != -* && $image != *[[:space:]]* ]] || fail 2 "$image is no image. Name one with image: name@sha256:…"
  [[ $image != *"sha256:$(printf '0%.0s' {1..64})" ]] || fail 2 "This commit of the action is not a release, so that it has no image yet. Use a release tag (@v1), or name an image with image:, or set runtime: native."
  docker image inspect "$image" &>/dev/null || docker pull --quiet "$image" ||
    fail 5 "The image $image could not be pulled (Docker says why, above). Check its name, this runner's network and disk, and that it may read that registry (docker login)."
}

described_by_cdi() { # before 28.2, Docker does not list its CDI devices, only the folders of their descriptions
  local folder
  [[ $engine =~ \"CDISpecDirs\":\[([^]]*)\] ]] || return 1
  for folder in ${BASH_REMATCH[1]//[\",]/ }; do if compgen -G "$folder/*nvidia*" >/dev/null; then return 0; fi; done
  return 1
}

choose_gpus() { # the flags that hand over the GPUs asked for, in $gpus; none is a choice too
  local wanted=${INPUT_GPUS:-auto} seen=unknown way='' by
  by="gpus is $wanted"
  gpus=()
  case ${wanted,,} in auto | all | none) wanted=${wanted,,} ;; esac
  [[ $wanted =~ ^[A-Za-z0-9,:/-]+$ ]] || fail 2 "gpus is $wanted. Choose auto, all, none, or a list of devices (0,1)."
  # As bot/terminal/spelling.py reads it; what else there is, is refused before anything is downloaded.
  if [[ ${INPUT_DEVICE:-} =~ ^[[:space:]]*(torch\.)?([Cc][Uu][Dd][Aa]|[Gg][Pp][Uu])[[:space:]]*$ ]]; then
    [[ $wanted != none ]] || fail 2 "device is cuda, and gpus is none. Leave one of them at auto."
    [[ $wanted != auto ]] || { wanted=all by="device is cuda"; }
  fi
  [[ $wanted != none ]] || return 0
  # No nvidia-smi says nothing where Docker runs elsewhere (a pod beside ours); one that fails says that there is no GPU.
  if command -v nvidia-smi >/dev/null; then nvidia-smi -L &>/dev/null && seen=yes || seen=no; fi
  if [[ $seen != no ]]; then
    if [[ $engine == *'"nvidia":{'* ]] || { [[ $seen == yes ]] && command -v nvidia-container-runtime-hook >/dev/null; }; then
      way=runtime
    elif [[ $engine == *nvidia.com/gpu=* ]] || described_by_cdi; then
      way=cdi
    fi
  fi
  if [[ -z $way && $wanted != auto ]]; then
    fail 6 "$by, but Docker on this runner has no way to hand over a GPU. Install the NVIDIA driver and nvidia-container-toolkit, or leave gpus and device at auto."
  elif [[ -z $way && $seen == yes ]]; then
    say warning "This runner has a GPU, but Docker cannot hand it over, so that the merge runs on the CPU: the same result, later. Install nvidia-container-toolkit, or set gpus: none."
  elif [[ $way == runtime ]]; then
    case $wanted in auto | all) gpus=(--gpus all) ;; *) gpus=(--gpus "\"device=$wanted\"") ;; esac
  elif [[ $way == cdi ]]; then
    case $wanted in auto | all) wanted=all ;; esac
    local device
    for device in ${wanted//,/ }; do gpus+=(--device "nvidia.com/gpu=$device"); done
  fi
}

mount_file() { # mount_file WHAT [readonly]: Docker mounts nothing twice; where two meet, the one that may be written counts
  local mount="type=bind,source=${1%/},target=${1%/}" index
  for index in "${!mounts[@]}"; do
    [[ ${mounts[index]} != "$mount" ]] || return 0
    if [[ ${mounts[index]} == "$mount,readonly" ]]; then unset "mounts[index - 1]" "mounts[index]"; fi
  done
  mounts+=(--mount "$mount${2:+,$2}")
}

mounted() { [[ "${mounts[*]} ${outward[*]-} " == *",target=${1%/}"[\ ,]* ]]; }

choose_mounts() { # the same paths inside as outside; written are the work folder, the cache and the runner's two files
  mounts=()
  mount_file "$GITHUB_WORKSPACE" readonly
  mount_file "$temp" readonly
  mount_file "$ADAPTER_MERGE_WORK"
  mount_file "$HF_HOME"
  local file
  if [[ -n ${HF_HUB_CACHE:-} ]]; then mount_file "$HF_HUB_CACHE"; fi
  if [[ -n $beside ]] && ! mounted "$beside"; then mount_file "$beside"; fi # never the workspace, to be written
  for file in "${GITHUB_OUTPUT:-}" "${GITHUB_STEP_SUMMARY:-}"; do if [[ -f $file ]]; then mount_file "$file"; fi; done
  if [[ -f ${GITHUB_EVENT_PATH:-} ]]; then mount_file "$GITHUB_EVENT_PATH" readonly; fi
  # What actions/checkout and `hf auth login` leave lying about: their tokens.
  for file in "$temp"/git-credentials-*.config "$HF_HOME"/{token,stored_tokens}; do
    if [[ -f $file ]]; then mounts+=(--mount "type=bind,source=/dev/null,target=$file,readonly"); fi
  done
  for file in "$GITHUB_WORKSPACE"{,/*}/.git; do if [[ -d $file ]]; then mounts+=(--tmpfs "$file"); fi; done
}

choose_flags() { # what all containers share
  local user name
  user=$(id -u):$(id -g)
  [[ $engine != *name=rootless* ]] || user=0:0 # which is, outside, the caller
  flags=(--rm --init --user "$user" --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges
    --workdir "$GITHUB_WORKSPACE" "${mounts[@]}")
  # Where Docker sets SELinux labels, a container may not read what the host labelled. Relabelling (:z) would change the
  # labels of workspace, cache and system certificates for good, file by file; the container goes without one of its own.
  if [[ $engine == *name=selinux* || $engine == *'"selinuxEnabled":true'* ]]; then flags+=(--security-opt label=disable); fi
  for name in "${told[@]}" "${!INPUT_@}"; do if [[ -n ${!name:-} ]]; then flags+=(--env "$name"); fi; done
  choose_way_out
}

choose_way_out() { # what the containers with a network get, in $outward
  local name place
  outward=()
  for name in "${proxies[@]}" "${certificates[@]}"; do if [[ -n ${!name:-} ]]; then outward+=(--env "$name"); fi; done
  for name in "${certificates[@]}"; do
    while IFS= read -r place; do
      mounted "$place" || outward+=(--mount "type=bind,source=${place%/},target=${place%/},readonly")
    done < <(places_of "$name")
  done
  # A Hub or a proxy on this runner's own loopback is reached from the runner's own network only.
  for name in HF_ENDPOINT "${proxies[@]}"; do
    if [[ $name != [Nn][Oo]_* && ${!name:-} =~ //([^/@]*@)?(127\.|localhost|\[::1\]) ]]; then
      outward+=(--network host)
      break
    fi
  done
}

require_shared_files() { # a container can write a file that we made
  local file=$ADAPTER_MERGE_WORK/.shared
  : >"$file"
  docker run "${flags[@]}" --network none --env NVIDIA_VISIBLE_DEVICES=void --entrypoint test "$image" -w "$file" ||
    fail 6 "A container cannot write this runner's files in $ADAPTER_MERGE_WORK: Docker runs elsewhere, or as somebody else. Give both the same work folder (for a runner in a pod: container mode dind), or run the job in the image (container:)."
  rm -f "$file"
}

# --- the phases ---------------------------------------------------------------------------------------------------

give() { # give NAME VALUE: to this phase only, and never on a command line
  [[ -n $2 ]] || return 0
  export "$1=$2"
  given+=(--env "$1")
}

give_identity() {
  give ACTIONS_ID_TOKEN_REQUEST_TOKEN "$id_token"
  give ACTIONS_ID_TOKEN_REQUEST_URL "$id_url"
  give HF_OIDC_ID_TOKEN "$id_made"
  give HF_OIDC_RESOURCE "$id_resource"
}

launch() { # launch PHASE: becomes the child
  local given=() more=()
  case $1 in
    fetch)
      if [[ -n $read_token ]]; then give HF_READ_TOKEN "$read_token"; else give HF_TOKEN "$write_token"; fi
      if [[ -n $id_resource && $id_resource != */* ]]; then give_identity; fi # a user's identity reads, a repo's writes
      ;;
    merge) give HF_HUB_OFFLINE 1 ;;
    preflight | publish)
      give HF_TOKEN "$write_token"
      give_identity
      if [[ $1 == publish ]]; then give INPUT_GITHUB_TOKEN "$github_token"; fi
      ;;
  esac
  [[ $runtime == docker ]] || exec python3 -P -m bot.action "$1"
  case $1 in
    merge) more=(--network none "${gpus[@]}") ;;
    *) more=("${outward[@]}" --env NVIDIA_VISIBLE_DEVICES=void) ;; # where Docker hands a GPU to every container
  esac
  exec docker run --name "$container" "${flags[@]}" "${given[@]}" "${more[@]}" --entrypoint python "$image" -P -m bot.action "$1"
}

run_phase() { # run_phase NAME: its exit code is ours
  local code=0
  container=adapter-merge-${GITHUB_RUN_ID:-0}-${GITHUB_RUN_ATTEMPT:-0}-$1-$RANDOM$RANDOM
  [[ $runtime == native ]] || echo "$container" >"$record"
  launch "$1" &
  child=$!
  wait "$child" || code=$?
  rm -f "$record"
  [[ -z $ended ]] || return "$code" # it only tells of an end, which stays what it was
  case $runtime$code in
    docker125 | docker126 | docker127) fail 6 "Docker could not start the $1 container (it says why, above). Check the image and, for a GPU, nvidia-container-toolkit (gpus: none goes without)." ;;
    *137) fail 6 "The $1 phase was killed, most likely for want of memory. Take a runner with more, or set verify: weights." ;;
  esac
  return "$code"
}

stop() { # A cancelled job: SIGINT, SIGTERM after 7.5 s, SIGKILL after another 2.5, all of them to this process only.
  trap '' INT TERM
  if [[ -n $child && $runtime == docker ]]; then
    # Where it does not even exist yet, the client must not go on to start it; the clean-up step looks once more.
    docker stop -t 5 "$container" &>/dev/null || { kill "$child"; docker rm --force "$container"; } &>/dev/null || true
  elif [[ -n $child ]]; then
    kill "$child" 2>/dev/null || true
  fi
  wait
  say warning "Cancelled. Nothing is half published; run the job again, and what was downloaded is still there."
  tell 'Cancelled.'
  exit 130
}

clean_up() {
  [[ -s $record ]] || exit 0
  local name
  name=$(<"$record")
  rm -f "$record"
  docker container inspect "$name" &>/dev/null || exit 0
  docker rm --force "$name" >/dev/null && echo "Ended the container $name."
}

main() {
  child='' container='' beside='' ended=''
  trap stop INT TERM
  choose_runtime
  choose_cache
  check_certificates
  mkdir -p "$ADAPTER_MERGE_WORK"
  if [[ $runtime == docker ]]; then
    require_docker
    choose_gpus
    choose_image
    choose_mounts
    choose_flags
    require_shared_files
  fi
  local phase code=0
  for phase in preflight fetch merge publish; do run_phase "$phase" || { code=$? && break; }; done
  # The last phase also tells of failures, where that was asked for: a check run, a comment. It publishes nothing then.
  if [[ $phase != publish && $code =~ ^(3|4|5|6|70)$ && ! ${INPUT_REPORT:-} =~ ^(|none|summary)$ ]]; then
    ended=$phase
    run_phase publish || true
  fi
  ((code == 0)) || tell "The $phase phase ended with exit code $code; the log says why."
  exit "$code"
}

case ${1:-} in
  '') main ;;
  clean-up) clean_up ;;
  *) fail 2 "launch.sh takes nothing, or clean-up." ;;
esac

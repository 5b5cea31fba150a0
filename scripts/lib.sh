# shellcheck shell=bash
# Functions that the scripts in this folder share. Source it; it runs nothing by itself.

# Readable by the unprivileged user that Postgres runs as, whatever the caller's umask is.
umask 022

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# What this checkout's services need and store.
# shellcheck disable=SC2034 # used by the scripts
STATE=$(realpath -m -- "${TIDINGS_STATE:-$REPO/.state}")
# Downloads, shared by all checkouts.
CACHE=${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/tidings

# Standard output belongs to results (`eval "$(scripts/services up)"`), so messages go to stderr.
log() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { log "$*"; exit 1; }

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the range from which the kernel takes the ports of outgoing connections (32768 and up): there, a client
# could occupy the port of a service that is down, or a reconnecting client could even connect to itself.
free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + SRANDOM % 12000))
    port_open "$port" || { echo "$port"; return; }
  done
  die "found no free port between 20000 and 31999"
}

# wait_for <seconds> <what> <command...>: polls until the command succeeds. A command that returns 2 says that
# there is no point in waiting any longer.
wait_for() {
  local seconds=$1 what=$2 end=$((SECONDS + $1 + 1)) rc
  shift 2
  while true; do
    rc=0
    "$@" >/dev/null 2>&1 || rc=$?
    ((rc != 0)) || return 0
    ((rc != 2)) || { log "$what failed"; return 1; }
    ((SECONDS < end)) || { log "waited $seconds s in vain for $what"; return 1; }
    sleep 0.05
  done
}

# have <what>: is there such a command, or (from a leading slash) such a file? Wildcards are fine.
have() {
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) command -v -- "$1" >/dev/null ;;
  esac
}

# need_apt <what>:<package>...: installs the packages whose command or file is missing.
need_apt() {
  local packages
  packages=$(missing "$@")
  [[ -n $packages ]] || return 0
  have apt-get || die "please install (Debian's names): $packages"
  mkdir -p "$CACHE"
  # Two checkouts may want this at once: the second one then finds everything installed.
  (
    flock 8
    packages=$(missing "$@")
    [[ -z $packages ]] || apt_install "$packages"
  ) 8>"$CACHE/apt.lock"
}

missing() {
  local item packages=()
  for item; do
    have "${item%:*}" || packages+=("${item##*:}")
  done
  echo "${packages[*]}"
}

apt_install() {
  local root=() boot out=$CACHE/apt.log packages
  read -ra packages <<<"$1"
  if ((EUID != 0)); then
    have sudo || die "please install as root: apt-get install ${packages[*]}"
    root=(sudo)
  fi
  # Another program may be using apt: wait for it. RUNLEVEL=1 and the policy keep the packages from starting
  # services of the system, which we do not want (and which cannot start inside a container).
  local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=600 -q -y)
  boot=$(cat /proc/sys/kernel/random/boot_id)
  if [[ $(cat "$CACHE/apt.updated" 2>/dev/null) != "$boot" ]]; then
    log "updating the package lists"
    if "${apt[@]}" update >"$out" 2>&1; then
      echo "$boot" >"$CACHE/apt.updated"
    else
      log "apt-get update failed (see $out), going on with the lists that are there"
    fi
  fi
  log "installing ${packages[*]}"
  local policy=/usr/sbin/policy-rc.d
  if ! [[ -e $policy ]]; then
    # shellcheck disable=SC2064 # now, not later: these are local variables
    trap "${root[*]} rm -f $policy" EXIT
    printf '#!/bin/sh\n# Temporary, by Tidings (scripts/lib.sh): remove it.\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
    "${root[@]}" chmod 755 "$policy"
  fi
  "${apt[@]}" install --no-install-recommends "${packages[@]}" >"$out" 2>&1 </dev/null 8>&- || {
    tail -n 15 "$out" >&2
    die "could not install ${packages[*]} (the whole story: $out)"
  }
}

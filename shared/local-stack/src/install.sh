# Installs the packages given as arguments, and leaves no server of the machine running, enabled or created.
# Run as root by rollcall-local-stack.

set -eu
export DEBIAN_FRONTEND=noninteractive
# Where it is installed, needrestart would restart services of the machine after an installation.
export NEEDRESTART_SUSPEND=1
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d
cluster=$clusters/rollcall-local-stack.conf
fresh=

# Packages enable their services for the next boot.
disable() {
    [ -e "/lib/systemd/system/$1" ] || return 0
    if command -v systemctl > /dev/null; then
        systemctl disable "$1"
        return
    fi
    name=${1%.*}
    if [ -e "/etc/init.d/$name" ]; then update-rc.d "$name" disable; fi
    # Links are made even where there is no systemd yet.
    rm -f /etc/systemd/system/*.wants/"$1"
}

# After a Ctrl-C too: apt then ends early, but dpkg finishes what it has begun.
cleanup() {
    trap '' HUP INT TERM
    for unit in $fresh; do disable "$unit" || true; done
    rm -f "$cluster"
    if grep -qs rollcall-local-stack "$policy"; then rm -f "$policy"; fi
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# Those that were there before are left as they are.
for unit in postgresql.service rabbitmq-server.service epmd.service epmd.socket pgbouncer.service; do
    [ -e "/lib/systemd/system/$unit" ] || fresh="$fresh $unit"
done

# Exit status 101 is how a Debian machine tells maintainer scripts not to start services.
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\n# rollcall-local-stack: temporary, while packages are installed\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
mkdir -p "$clusters"
echo "create_main_cluster = false" > "$cluster"

# DPkg::Lock::Timeout does not cover the lock of the package lists.
tries=24
until said=$(apt-get update 2>&1); do
    echo "$said"
    case $said in *"Could not get lock"*) ;; *) break ;; esac
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || break
    sleep 5
done
apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"

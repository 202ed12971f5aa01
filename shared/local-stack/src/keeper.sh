# Ends what a stack started, once nobody who used it is alive. Written and started by rollcall-local-stack.
# usage: sh keeper.sh DIRECTORY ID LINGER_SECONDS
#
# It uses nothing but a POSIX shell, kill, sleep, cat, rm and grep. A record holds "pid start"; where there is no
# /proc, start is "-" and a pid is all there is to go by.

dir=$1 id=$2 linger=$3
trap '' HUP INT
cd "$dir" || exit 1
boot=-
{ read -r boot < /proc/sys/kernel/random/boot_id; } 2> /dev/null

# alive PID START
alive() {
    if [ ! -e /proc/self/stat ]; then
        kill -0 "$1" 2> /dev/null
        return
    fi
    wanted=$2
    { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 1
    # The state is the first field after the name in parentheses, the start time the twentieth.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    [ "$1" != Z ] && [ "$1" != X ] && [ "${20}@$boot" = "$wanted" ]
}

# end RECORD SIGNAL SECONDS: asks, then insists.
end() {
    { read -r pid start rest < "$1"; } 2> /dev/null || return 0
    # A process frozen for a test hears nothing until it is thawed.
    [ -e "$1.frozen" ] && kill -CONT $(cat "$1.frozen") 2> /dev/null
    if alive "$pid" "$start"; then
        echo "ending $1, process $pid"
        kill -"$2" "$pid"
        kill -CONT "$pid"
        left=$(($3 * 5))
        while alive "$pid" "$start" && [ "$left" -gt 0 ]; do
            sleep 0.2
            left=$((left - 1))
        done
        alive "$pid" "$start" && kill -KILL "$pid"
    fi
    rm -f "$1" "$1.frozen"
}

# Processes that no record names: started in the instant before a kill -9, or forked by a server.
sweep() {
    for signal in TERM KILL; do
        strays=$(grep -lsF "ROLLCALL_STACK_ID=$id" /proc/[0-9]*/environ)
        [ -n "$strays" ] || return 0
        for stray in $strays; do
            stray=${stray#/proc/}
            kill -"$signal" "${stray%/environ}" 2> /dev/null
        done
        sleep 2
    done
}

end_all() {
    for child in children/*; do end "$child" TERM 8 & done
    wait
    for container in processes/*.container; do
        [ -e "$container" ] && docker rm -f "$(cat "$container")" && rm -f "$container"
    done
    end processes/rabbitmq TERM 20 &
    end processes/postgres INT 20 &
    wait
    end processes/epmd TERM 2
    sweep
}

# Whether any registered user is alive; forgets the others.
used() {
    found=1
    for user in users/*; do
        { read -r pid start rest < "$user"; } 2> /dev/null || continue
        if alive "$pid" "$start"; then found=0; else rm -f "$user"; fi
    done
    return $found
}

# ours: 0 when the directory names this keeper, 1 when it names another, 2 when it names none.
ours() {
    { read -r keeper rest < keeper; } 2> /dev/null || return 2
    [ "$keeper" = $$ ]
}

waited=0
until ours; do
    # Whoever started us was killed before it wrote our pid; it had started nothing else.
    [ "$waited" -lt 100 ] || exit 0
    waited=$((waited + 1))
    sleep 0.1
done

idle=0
while :; do
    sleep 1
    ours
    case $? in
        1) exit 0 ;;
        2) sweep; exit 0 ;; # stopped, or the directory was deleted
    esac
    if used; then
        idle=0
        continue
    fi
    idle=$((idle + 1))
    [ "$idle" -ge "$linger" ] || continue
    # A newcomer registers first and looks for this file then; we write it first and look for users then.
    : > stopping
    if used; then
        rm -f stopping
        idle=0
        continue
    fi
    echo "nobody has used $dir for $linger s"
    end_all
    rm -f keeper stopping
    exit 0
done

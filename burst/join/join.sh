# From here on the script is the same for every machine. In order: start a watchdog, find the own
# address, bring up the tunnel, prove to the gateway which lease this is, do what it answers.
# Safe to run again, after a reboot too. Log: /var/log/dvn-join.log

set -u -o pipefail
umask 077
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C
state="$ROOT/var/lib/dvn-join" # kept over a reboot: the nonce
run="$ROOT/run/dvn-join"       # gone after a reboot: the session key, the bundle
log="$ROOT/var/log/dvn-join.log"
mkdir -p "$state" "$run" "${log%/*}"

say() {
    local line
    TZ=UTC printf -v line '%(%FT%TZ)T dvn-join: %s' -1 "$*"
    printf '%s\n' "$line" >>"$log"
    printf '%s\n' "$line"
}

uptime_now() { # into $now, in seconds; the wall clock may jump while it is being set
    read -r now _ </proc/uptime
    now=${now%%.*}
}

power_off() {
    say "$1: powering off"
    shutdown -h now || say "shutdown failed; it will be tried again"
}

# Ask the gateway: path, file for the answer, more curl arguments. Prints the HTTP status, 000 for
# none. The certificate has no authority behind it; the pinned key decides (curl ends with 90).
ask() {
    local path=$1 answer=$2
    shift 2
    curl --silent --show-error --insecure --pinnedpubkey "$PIN" --tlsv1.2 --proto =https \
        --noproxy '*' --connect-timeout 10 --max-time 30 --max-filesize 4194304 \
        --output "$answer" --write-out '%{http_code}' "$@" "$ENROL_URL$path" 2>>"$log"
}

pause() { # $1 seconds and a little chance, so that a hundred machines do not ask as one
    sleep "$(($1 + RANDOM % 3))"
}

# Without a word from the gateway for WATCHDOG seconds the machine costs money for nobody.
watchdog() {
    exec 9>"$run/watchdog.lock"
    flock --nonblock 9 || return 0 # one is enough
    local heard word
    uptime_now
    heard=$now
    while :; do
        pause "$HEARTBEAT"
        [[ -s $run/word ]] && read -r word <"$run/word" && ((word > heard)) && heard=$word
        uptime_now
        if [[ -s $run/authorization ]]; then
            case $(ask /alive /dev/null --header @"$run/authorization") in
                200) heard=$now ;;
                410) power_off "the gateway says that this lease is over" ;;
            esac
        fi
        if ((now - heard > WATCHDOG)); then
            power_off "nothing heard from the gateway for $((now - heard)) s"
        fi
    done
}

# A spot machine is told two minutes before that it will be taken back, and at times earlier that it
# may be. The gateway then takes the jobs off it in time. AWS: look every 5 seconds.
notices() {
    exec 8>"$run/notices.lock"
    flock --nonblock 8 || return 0
    local ends kind said told=no try=2
    until kind=$(metadata instance-life-cycle); do # one answer lost must not make us deaf for ever
        pause "$try"
        ((try = try < 60 ? try * 2 : 60))
    done
    [[ $kind == spot ]] || return 0
    while :; do
        pause 4
        [[ -s $run/authorization ]] || continue
        ends=
        if said=$(metadata spot/instance-action) && [[ $said =~ \"time\":\ *\"([0-9TZ:.-]+)\" ]]; then
            ends=${BASH_REMATCH[1]}
        elif [[ $told != no ]] || ! metadata events/recommendations/rebalance >/dev/null; then
            continue
        fi
        [[ $told != "$ends" ]] || continue
        say "the provider takes this machine back: ${ends:-soon, perhaps}"
        printf '{"ends": "%s"}' "$ends" >"$run/notice.json"
        case $(ask /notice /dev/null --header @"$run/authorization" --data-binary @"$run/notice.json") in
            204) told=$ends ;;
        esac
    done
}

report() { # sends $run/report.json, a JSON object
    local try
    local -a proof=()
    [[ -s $run/authorization ]] && proof=(--header @"$run/authorization")
    for try in 1 2 4 8 15 30; do
        case $(ask /report /dev/null --data-binary @"$run/report.json" "${proof[@]}") in
            204) return 0 ;;
            400 | 403 | 410) break ;;
        esac
        pause "$try"
    done
    say "the gateway did not take the report"
    return 1
}

fail() { # stage, what happened: tell the gateway, which will return the machine
    local detail=${2//[\"\\]/\'}
    say "failed at $1: $2"
    printf '{"token": "%s", "nonce": "%s", "stage": "%s", "ok": false, "detail": "%s"}' \
        "$TOKEN" "${nonce:-}" "$1" "${detail//[^[:print:]]/ }" >"$run/report.json"
    report
    exit 1
}

metadata() { # path below /latest/meta-data (IMDSv2)
    local session
    session=$(curl -sf -m 5 --noproxy '*' -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
        "$METADATA/latest/api/token") &&
        curl -sf -m 5 --noproxy '*' -H "X-aws-ec2-metadata-token: $session" \
            "$METADATA/latest/meta-data/$1"
}

own_address() { # into $private; the metadata service may need a moment after boot
    local try
    for try in 1 1 2 4 8 15 30; do
        private=$(metadata local-ipv4) && [[ $private =~ ^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$ ]] && return
        pause "$try"
    done
    return 1
}

deny_metadata() { # user data and the machine's credentials are no business of the jobs' users
    local host=${METADATA#*://}
    host=${host%%[:/]*}
    ip rule add priority 16 to "$host" uidrange 1-4294967294 prohibit 2>/dev/null ||
        [[ $(ip rule show) == *"$host uidrange 1-4294967294 prohibit"* ]]
}

bring_up_tunnel() { # the far end is fixed; this end is the private address: the NAT is outside
    local ends=(type gretap local "$private" remote "$GATEWAY" key "$KEY" ttl 64)
    if [[ -e /sys/class/net/$DEVICE ]]; then
        ip link change dev "$DEVICE" "${ends[@]}"
    else
        ip link add name "$DEVICE" "${ends[@]}"
    fi &&
        ip link set dev "$DEVICE" mtu "$MTU" address "$MAC" alias "dvn lease $LEASE" up &&
        ip address replace "$ADDRESS/$PREFIX_LENGTH" dev "$DEVICE"
}

bring_up_interface() { # of a machine in the network itself: its one interface has our MAC address
    local each
    for each in /sys/class/net/*; do
        [[ $(<"$each/address") == "$MAC" ]] || continue
        DEVICE=${each##*/}
        # The hypervisor cannot know what the tunnels of the network carry whole.
        (($(<"$each/mtu") <= MTU)) || ip link set dev "$DEVICE" mtu "$MTU" || return
        ip link set dev "$DEVICE" alias "dvn lease $LEASE" up &&
            ip address replace "$ADDRESS/$PREFIX_LENGTH" dev "$DEVICE" &&
            ip route replace default via "$GATEWAY" dev "$DEVICE"
        return
    done
    echo "no interface has the address $MAC"
    return 1
}

claim() { # which lease of its batch this machine is: into LEASE NODE KEY MAC ADDRESS TOKEN
    local limit try=1 status index
    index=$(metadata ami-launch-index) && [[ $index =~ ^[0-9]+$ ]] || return 1
    uptime_now
    limit=$((now + WATCHDOG))
    printf '{"token": "%s", "nonce": "%s", "index": %s}' "$BATCH" "$nonce" "$index" \
        >"$run/request.json"
    while uptime_now && ((now < limit)); do
        status=$(ask /claim "$run/claim.json" --data-binary @"$run/request.json")
        case $status in
            200)
                read -r LEASE NODE KEY MAC ADDRESS TOKEN < <(python3 -c 'import json, sys
said = json.load(open(sys.argv[1]))
print(*(said[name] for name in ("lease", "node", "key", "mac", "address", "token")))' "$run/claim.json")
                [[ -n $TOKEN ]]
                return
                ;;
            400 | 403)
                power_off "the gateway refuses: $(<"$run/claim.json")"
                exit 1
                ;;
            *) say "no place in the batch yet (status $status): again in $try s" ;;
        esac
        pause "$try"
        ((try = try < 10 ? try * 2 : 15))
    done
    return 1
}

enrol() { # into $run/bundle.json; ends the machine when it is refused for good
    local limit try=1 status
    uptime_now
    limit=$((now + WATCHDOG))
    printf '{"token": "%s", "nonce": "%s"}' "$TOKEN" "$nonce" >"$run/request.json"
    while uptime_now && ((now < limit)); do
        status=$(ask /enrol "$run/bundle.json" --data-binary @"$run/request.json")
        if (($? == 90)); then
            say "who answers at $ENROL_URL is not our gateway: its key is not the pinned one"
        fi
        case $status in
            200)
                uptime_now
                printf '%s\n' "$now" >"$run/word" # for the watchdog: joining may take long, too
                return 0
                ;;
            400 | 403)
                power_off "the gateway refuses: $(<"$run/bundle.json")"
                exit 1
                ;;
            *) say "no enrolment yet (status $status): again in $try s" ;;
        esac
        pause "$try"
        ((try = try < 10 ? try * 2 : 15))
    done
    return 1
}

[[ -n $BATCH ]] || say "joining as $NODE for lease $LEASE"
missing=
for program in curl flock ip python3 shutdown sleep; do
    command -v "$program" >/dev/null || missing+=" $program"
done
[[ -z $missing ]] || say "this image lacks:$missing"
watchdog </dev/null >/dev/null 2>>"$log" &

if [[ -s $state/nonce ]]; then
    read -r nonce <"$state/nonce"
else
    read -r nonce </proc/sys/kernel/random/uuid
    nonce=${nonce//-/}
    printf '%s\n' "$nonce" >"$state/nonce"
fi
[[ -z $missing ]] || fail prerequisites "this image lacks:$missing"

# cloud-init runs user data at the first boot only, and what is here at every boot.
boot="$ROOT/var/lib/cloud/scripts/per-boot"
if [[ -d $boot && -r $0 && ! $0 -ef $boot/dvn-join ]]; then
    install -m 0700 "$0" "$boot/dvn-join"
fi

if [[ -n $ATTACHED ]]; then
    error=$(bring_up_interface 2>&1) || fail link "interface $MAC: $error"
else
    own_address || fail metadata "no private address from the metadata service at $METADATA"
    notices </dev/null >/dev/null 2>>"$log" &
    deny_metadata || fail metadata "the jobs' users cannot be kept from $METADATA: ip rule failed"
    if [[ -n $BATCH ]]; then
        claim || fail enrol "no place in the batch from the gateway at $ENROL_URL"
        say "joining as $NODE for lease $LEASE"
    fi
    modprobe ip_gre 2>>"$log" || say "modprobe ip_gre failed: it may be built in"
    error=$(bring_up_tunnel 2>&1) || fail link "GRE tunnel $private to $GATEWAY: $error"
fi
enrol || fail enrol "no bundle from the gateway at $ENROL_URL"

# The program that carries the bundle out comes in it: the answer is as good as its key.
rm -f "$run/report.json"
python3 -c 'import json, sys
bundle = sys.argv[1] + "/bundle.json"
exec(compile(json.load(open(bundle))["program"], "apply.py", "exec"))' "$run" "$ROOT" "$log" </dev/null
status=$?
rm -f "$run/bundle.json"
[[ -s $run/report.json ]] || fail apply "the bundle could not be carried out; see $log"
report
if ((status == 0)); then say "joined"; fi
exit "$status"

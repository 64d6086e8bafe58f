#!/bin/sh
# Runs as the first program of the machine that run.sh boots. Prints one line,
# PASS or FAIL, for each thing checked.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "BOOTED after $(cut -d' ' -f1 /proc/uptime) s"
for module in $(cat /modules/order); do
    case $module in
        v4l2loopback) insmod /modules/$module.ko video_nr=9 exclusive_caps=1 card_label=loopback ;;
        vivid) ;; # loaded by plug
        *) insmod /modules/$module.ko ;;
    esac || echo "FAIL insmod $module"
done

plug() { insmod /modules/vivid.ko n_devs=1 node_types=0x1 input_types=0; }
inject() { v4l2-ctl -d /dev/video0 -c "$1" 2>&1; }
estimates() { wc -l < /tmp/out; }
pass() { echo "PASS $* ($(cut -d' ' -f1 /proc/uptime) s)"; }
fail() { echo "FAIL $*"; tail -n 4 /tmp/out /tmp/err; }

# start ADDRESS: a fresh numclip that reads it.
start() {
    : > /tmp/out
    numclip -v run --model /model --source "$1" --json --stall 1 > /tmp/out 2> /tmp/err &
    numclip=$!
}
stop() { kill $numclip; wait $numclip; }

# more COUNT TENTHS: whether that many more estimates come in time.
more() {
    goal=$(($(estimates) + $1))
    for tenth in $(seq "$2"); do
        [ "$(estimates)" -ge $goal ] && return 0
        sleep 0.1
    done
    return 1
}

# The loopback camera shows the same photograph in every format.
expected=$(cat /pictures/expected)
for name in yuyv:YUYV uyvy:UYVY nv12:NV12 rgb:RGB3 bgr:BGR3 grey:GREY mjpeg:MJPG; do
    format=${name%:*} code=${name#*:}
    feed /dev/video9 /pictures/$format $code 320 320 2> /tmp/feed &
    feed=$!
    sleep 0.3
    start "camera:9?size=320x320&format=$format"
    if more 2 200; then
        value=$(tail -n 1 /tmp/out | sed 's/.*"value":\([-0-9.]*\).*/\1/')
        if awk "BEGIN { d = $value - $expected; exit !(d * d < 16) }"; then
            pass "$format: $value for $expected"
        else
            fail "$format: $value for $expected"
        fi
    else
        fail "$format: no estimate"; cat /tmp/feed
    fi
    stop
    kill $feed; wait $feed
done 2> /dev/null

plug
numclip cameras
start "camera:0?size=320x180&format=yuyv"
more 2 200 && pass "vivid" || fail "vivid"

# Buffers that the driver flags as erroneous are told and passed over.
inject inject_v4l2_buf_flag_error=1
more 2 100 && pass "goes on after a flagged buffer" || fail "flagged buffer"

# All buffers dropped: nothing comes, and nothing says so.
inject percentage_of_dropped_buffers=100
sleep 3
grep -q "no frame for" /tmp/err && pass "stall is noticed" || fail "stall is noticed"
inject percentage_of_dropped_buffers=0
more 1 50 && pass "recovers from a stall within 5 s" || fail "stall"

inject inject_fatal_streaming_error=1
more 1 50 && pass "recovers from a fatal error within 5 s" || fail "fatal error"

# Unplugged, and plugged in again.
inject disconnect=1
sleep 2
for try in 1 2 3 4 5 6 7 8 9 10; do rmmod vivid && break; sleep 0.3; done
[ -e /dev/video0 ] && fail "the camera is still there"
sleep 1
plug
more 1 50 && pass "recovers from a replug within 5 s" || fail "replug"

kill $numclip
wait $numclip
[ $? = 0 ] && pass "ends when told" || fail "ends when told"
grep "frames," /tmp/err
echo "DONE after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f

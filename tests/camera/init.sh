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
        vivid) ;; # loaded below
        *) insmod /modules/$module.ko ;;
    esac || echo "FAIL insmod $module"
done

driver=/sys/bus/platform/drivers/vivid
unplug() { echo vivid.0 > $driver/unbind; }
plug() { echo vivid.0 > $driver/bind; }
estimates() { wc -l < /tmp/out; }
complaints() { grep -c notice /tmp/err; }

# inject CONTROL=VALUE: whether numclip complains within 5 s.
inject() {
    before=$(complaints)
    v4l2-ctl -d /dev/video0 -c "$1"
    for tenth in $(seq 50); do
        [ "$(complaints)" -gt "$before" ] && return 0
        sleep 0.1
    done
    return 1
}
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

insmod /modules/vivid.ko n_devs=1 node_types=0x1 input_types=0
numclip cameras
start "camera:0?size=320x180&format=yuyv"
more 2 200 && pass "vivid" || fail "vivid"

inject inject_v4l2_buf_flag_error=1 && pass "a flagged buffer is told" || fail "a flagged buffer is told"
more 2 50 && pass "goes on after a flagged buffer" || fail "goes on after a flagged buffer"

# All buffers dropped: nothing comes, and nothing says so.
inject percentage_of_dropped_buffers=100 && pass "a stall is noticed" || fail "a stall is noticed"
grep -q "no frame for" /tmp/err || fail "a stall is named"
v4l2-ctl -d /dev/video0 -c percentage_of_dropped_buffers=0
more 1 50 && pass "recovers from a stall within 5 s" || fail "recovers from a stall"

inject inject_fatal_streaming_error=1 && pass "a fatal error is noticed" || fail "a fatal error is noticed"
more 1 50 && pass "recovers from a fatal error within 5 s" || fail "recovers from a fatal error"

inject disconnect=1 && pass "a lost connection is noticed" || fail "a lost connection is noticed"
more 1 50 && pass "recovers from a lost connection within 5 s" || fail "recovers from a lost connection"

before=$(complaints)
unplug
sleep 3
[ "$(complaints)" -gt "$before" ] && [ ! -e /dev/video0 ] && pass "unplugged" || fail "unplugged"
plug
more 1 50 && pass "recovers within 5 s of being plugged in again" || fail "recovers from a replug"

kill $numclip
wait $numclip
[ $? = 0 ] && pass "ends when told" || fail "ends when told"
grep "frames," /tmp/err
echo "DONE after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f

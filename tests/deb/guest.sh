#!/bin/sh
# Runs in the machine that boot.sh boots, at every boot. Prints one line, PASS or
# FAIL, for each thing checked.
estimates=/var/log/numclip/estimates.jsonl
now() { cut -d' ' -f1 /proc/uptime; }
pass() { echo "PASS $* ($(now) s)"; }
fail() {
  echo "FAIL $*"
  systemctl status --no-pager --full numclip numclip-agent 2>&1 | tail -n 40
  tail -n 5 /proof/words
}
check() {
  if "$@" > /proof/words 2>&1; then pass "$what"; else fail "$what"; fi
}
# within SECONDS COMMAND…: whether it succeeds before long.
within() {
  end=$(($(date +%s) + $1))
  shift
  while ! "$@"; do
    [ "$(date +%s)" -lt $end ] || return 1
    sleep 1
  done
}
count() { cat $estimates* 2> /dev/null | wc -l; }
more() { [ "$(count)" -gt "$1" ]; }
of_model() { tail -n 1 $estimates | grep -q "\"name\":\"$1\""; }
settled() { systemctl show --property StatusText --value numclip-agent | grep settled; }
restarts() { systemctl show --property NRestarts --value "$1"; }
restarted() { [ "$(restarts "$1")" -gt "$2" ]; }
flash() { numclip flash "/proof/$1" dir:///var/lib/numclip; }
refused() {
  words=$1
  shift
  ! "$@" > /proof/refusal 2>&1 && grep "$words" /proof/refusal
}

first_boot() {
  what="the package is installed"
  check dpkg --install /proof/numclip.deb
  what="the service waits for a model"
  check systemctl is-enabled numclip
  what="the agent waits for its owner"
  check test "$(systemctl is-enabled numclip-agent)" = disabled
  sed -i 's|^address = .*|address = "camera:0?size=320x180\&format=yuyv"|' /etc/numclip/numclip.toml
  echo vivid > /etc/modules-load.d/vivid.conf
  echo 'options vivid n_devs=1 node_types=0x1 input_types=0' > /etc/modprobe.d/vivid.conf
  modprobe vivid
  what="a camera is there"
  check within 20 test -e /dev/video0
  what="a key that nobody trusts is refused"
  check refused "no trusted keys" flash gauge
  cp /proof/release.pub /var/lib/numclip/trust.d/
  what="a model is flashed, and the service is well with it"
  check flash gauge
  what="estimates come"
  check within 60 more 0
  touch /proof/rebooted
  sync
  systemctl reboot 2> /dev/null
}

second_boot() {
  before=$(count)
  what="estimates come after a reboot"
  check within 120 more "$before"
  what="they are the camera's user's, and nobody else's"
  check test "$(stat -c %U%a $estimates)" = numclip600

  # No signs of life any more.
  kill -STOP "$(systemctl show --property MainPID --value numclip)"
  what="a service that hangs is started again"
  check within 90 restarted numclip 0
  before=$(count)
  what="estimates come again"
  check within 60 more "$before"

  today=$(date +%s)
  # No earlier than the machine has been running.
  date --set @86400 > /dev/null
  what="a clock in 1970 is told"
  check refused "the clock here says 1970" flash tomato-freshness
  date --set "@$((today + 5))" > /dev/null
  before=$(count)
  what="the device serves all the while"
  check within 60 more "$before"

  echo 'AGENT=--watch file:///proof/order/ --every 5s' > /etc/numclip/agent
  mkdir /proof/order /run/systemd/system/numclip-agent.service.d
  cp /proof/gauge.json /proof/order/order.json
  # The shipped limit would be waited for too long here.
  printf '[Service]\nWatchdogSec=20\n' > /run/systemd/system/numclip-agent.service.d/proof.conf
  systemctl daemon-reload
  what="the agent starts"
  check systemctl start numclip-agent
  sleep 25
  what="its watchdog is fed"
  check test "$(systemctl is-active numclip-agent) $(restarts numclip-agent)" = "active 0"
  kill -STOP "$(systemctl show --property MainPID --value numclip-agent)"
  what="an agent that hangs is started again"
  check within 60 restarted numclip-agent 0
  cp /proof/tomato-freshness /proof/tomato-freshness.minisig /proof/order/
  cp /proof/tomato-freshness.json /proof/order/order.json
  what="the agent brings another model, within its unit's walls"
  check within 120 of_model tomato-freshness
  what="and is content"
  check within 60 settled
  systemctl stop numclip-agent
  systemctl stop numclip
  what="both end when told"
  check test "$(systemctl show --property Result --value numclip numclip-agent | xargs)" = "success success"
  echo "DONE ($(now) s)"
  systemctl poweroff 2> /dev/null
}

echo "BOOTED after $(now) s"
if [ -e /proof/rebooted ]; then second_boot; else first_boot; fi

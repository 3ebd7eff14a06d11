#compdef penstock
# SPDX-License-Identifier: Apache-2.0
# Completion of penstock(8) for zsh.
_penstock_upstreams() {
  local -a names=(${(f)"$(sed -n 's/^[[:space:]]*\[upstream\.\([A-Za-z0-9_.-]*\)\].*/\1/p' /etc/penstock/penstock.toml 2>/dev/null)"})
  compadd -a names
}
_penstock_cookies() {
  local -a cookies=(${(f)"$(penstock flows 2>/dev/null | awk '$1 ~ /^[0-9]+$/ { print $1 }')"})
  compadd -a cookies
}
_penstock() {
  local state line context
  local -a common=('--json[print JSON on one line]' '--socket[the admin socket]:path:_files' '--help[what it takes]')
  local -a files=('(-c --config)'{-c,--config}'[the configuration]:file:_files' '--env-file[instead of penstock.env]:file:_files')
  local -a commands=(
    'check:validate a configuration'
    'explain:which route and server a connection would get'
    'probe:what this kernel and these privileges allow'
    'status:listeners, upstreams, totals'
    'top:status, live'
    'flows:every live flow'
    'kill:reset flows'
    'lane:move one direction to another lane'
    'drain:no new flows'
    'resume:new flows again'
    'reload:read the configuration again'
    'upgrade:another program in the place of the one that runs'
    'ban:the deny list'
    'doctor:what a server expects')
  _arguments -C '--version' '--help' '1:command:->command' '*::argument:->argument' && return
  if [[ $state == command ]]; then
    _describe command commands
    return
  fi
  case $line[1] in
    check) _arguments $common $files ;;
    explain) _arguments $common $files '--to[where the client connects]:address and port' '--sni[the TLS server name]:name' '--from[the client]:address' '--alpn[its protocols]:names' '--via[the trusted proxy]:address' '--interface[the device the client comes in by]:device' ;;
    flows) _arguments $common '--listener[of one listener]:name' '--client[of clients in this network]:CIDR' ;;
    kill) _arguments $common '*:cookie:_penstock_cookies' ;;
    lane) _arguments $common '1:cookie:_penstock_cookies' '2:direction:(up down)' '3:lane:(splice held relay)' ;;
    ban) _arguments $common '--for[how long]:duration' '1:what:(add del list)' '2:CIDR' ;;
    drain | resume) _arguments $common '1:upstream:_penstock_upstreams' ;;
    doctor) _arguments $common '--port[of the server]:port' '1:upstream:_penstock_upstreams' '2:server' ;;
    *) _arguments $common ;;
  esac
}
_penstock "$@"

# SPDX-License-Identifier: Apache-2.0
# Completion of penstock(8) for fish.
set -l commands check explain probe status top flows kill lane drain resume reload upgrade ban doctor
function __penstock_cookies
    penstock flows 2>/dev/null | string match -rg '^([0-9]+)\s'
end
function __penstock_upstreams
    string match -rg '^\s*\[upstream\.([A-Za-z0-9_.-]+)\]' </etc/penstock/penstock.toml 2>/dev/null
end
complete -c penstock -f
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -l version -d 'the version'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a check -d 'validate a configuration'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a explain -d 'which route and server a connection would get'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a probe -d 'what this kernel and these privileges allow'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a status -d 'listeners, upstreams, totals'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a top -d 'status, live'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a flows -d 'every live flow'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a kill -d 'reset flows'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a lane -d 'move one direction to another lane'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a drain -d 'no new flows'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a resume -d 'new flows again'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a reload -d 'read the configuration again'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a upgrade -d 'another program in the place of the one that runs'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a ban -d 'the deny list'
complete -c penstock -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'what a server expects'
complete -c penstock -n "__fish_seen_subcommand_from $commands" -l json -d 'print JSON on one line'
complete -c penstock -n "__fish_seen_subcommand_from $commands" -l socket -r -F -d 'the admin socket'
complete -c penstock -n "__fish_seen_subcommand_from check explain" -s c -l config -r -F -d 'the configuration'
complete -c penstock -n "__fish_seen_subcommand_from check explain" -l env-file -r -F -d 'instead of penstock.env'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l to -x -d 'where the client connects'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l sni -x -d 'the TLS server name'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l from -x -d 'the client'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l alpn -x -d 'its protocols'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l via -x -d 'the trusted proxy'
complete -c penstock -n "__fish_seen_subcommand_from explain" -l interface -x -d 'the device the client comes in by'
complete -c penstock -n "__fish_seen_subcommand_from doctor" -l port -x -d 'of the server'
complete -c penstock -n "__fish_seen_subcommand_from flows" -l listener -x -d 'of one listener'
complete -c penstock -n "__fish_seen_subcommand_from flows" -l client -x -d 'of clients in this network'
complete -c penstock -n "__fish_seen_subcommand_from kill lane" -a '(__penstock_cookies)'
complete -c penstock -n "__fish_seen_subcommand_from lane" -a 'up down splice held relay'
complete -c penstock -n "__fish_seen_subcommand_from ban" -a 'add del list'
complete -c penstock -n "__fish_seen_subcommand_from ban" -l for -x -d 'how long'
complete -c penstock -n "__fish_seen_subcommand_from drain resume doctor" -a '(__penstock_upstreams)'

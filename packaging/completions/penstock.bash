# SPDX-License-Identifier: Apache-2.0
# Completion of penstock(8) for bash.
_penstock() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]}; break; }
  done
  case $prev in
    -c | --config | --env-file | --socket) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    --listener | --client | --to | --sni | --alpn | --from | --via | --interface | --port | --for) return ;;
  esac
  local words
  case $command in
    '') words='check explain probe status top flows kill lane drain resume reload upgrade ban doctor --help --version' ;;
    check) words='--config --env-file' ;;
    explain) words='--to --from --sni --alpn --via --interface --config --env-file' ;;
    flows) words='--listener --client' ;;
    kill) words=$(_penstock_cookies) ;;
    lane)
      case $((COMP_CWORD - i)) in
        1) words=$(_penstock_cookies) ;;
        2) words='up down' ;;
        3) words='splice held relay' ;;
      esac ;;
    ban) words='add del list --for' ;;
    drain | resume) words=$(_penstock_upstreams) ;;
    doctor) words="$(_penstock_upstreams) --port" ;;
  esac
  [[ -z $command ]] || words+=' --json --socket --help'
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
_penstock_cookies() { penstock flows 2>/dev/null | awk '$1 ~ /^[0-9]+$/ { print $1 }'; }
_penstock_upstreams() {
  sed -n 's/^[[:space:]]*\[upstream\.\([A-Za-z0-9_.-]*\)\].*/\1/p' /etc/penstock/penstock.toml 2>/dev/null
}
complete -F _penstock penstock

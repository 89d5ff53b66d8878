#compdef ironboot
# Completion of ironboot in zsh: `source <(ironboot completion zsh)` after `compinit`, or this as
# _ironboot in a directory of $fpath.
_ironboot() {
    local line value
    local -a closed open
    for line in ${(f)"$(ironboot complete -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)"}; do
        value=${line%%$'\t'*}
        local shown=${${value//\\/\\\\}//:/\\:}
        [[ $line != *$'\t'* ]] || shown+=:${line#*$'\t'}
        # After these, the word goes on.
        if [[ $value == *[/:=] ]]; then
            open+=("$shown")
        else
            closed+=("$shown")
        fi
    done
    (( ! $#closed )) || _describe -V ironboot closed
    (( ! $#open )) || _describe -V 'ironboot, to go on' open -S ''
}
if [[ $funcstack[1] == _ironboot ]]; then
    _ironboot "$@"
else
    compdef _ironboot ironboot
fi

# Completion of ironboot in bash 4.3 and later: `eval "$(ironboot completion bash)"`, or this as
# ironboot in /usr/share/bash-completion/completions.
_ironboot() {
    # bash splits words at `:`, `=` and `@` as well, which references and options have within: what
    # no blank is between is one word.
    local line=${COMP_LINE:0:COMP_POINT} words=() blank word place
    for ((place = 0; place <= COMP_CWORD; place++)); do
        blank=${line%%[![:space:]]*}
        line=${line#"$blank"}
        word=${COMP_WORDS[place]}
        # Of the last one, what is before the cursor.
        ((place < COMP_CWORD)) || word=$line
        line=${line#"$word"}
        if [[ -n $blank || $place -eq 0 ]]; then
            words+=("$word")
        else
            words[-1]+=$word
        fi
    done
    local sign quote=
    [[ ${words[-1]} != [\"\']* ]] || quote=${words[-1]:0:1}
    words[-1]=${words[-1]#"$quote"}

    # What bash puts its hands on is the end of the word, after the last place that it splits at.
    local kept=${words[-1]%"${2#"$quote"}"} candidate
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        [[ $candidate != *[/:=] ]] || compopt -o nospace
        candidate=${candidate#"$kept"}
        # What somebody has called a file must stay a word, and not become a command.
        case $quote in
        \') candidate=${candidate//\'/\'\\\'\'} ;;
        \")
            for sign in \\ \" \$ \`; do
                candidate=${candidate//"$sign"/\\"$sign"}
            done
            ;;
        *)
            [[ $candidate != *[![:alnum:]_./:=@%+,-]* ]] || printf -v candidate %q "$candidate"
            ;;
        esac
        COMPREPLY+=("$candidate")
    done < <(ironboot complete -- "${words[@]}" 2>/dev/null)
}
complete -o nosort -F _ironboot ironboot 2>/dev/null || complete -F _ironboot ironboot

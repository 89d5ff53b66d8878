# Completion of ironboot in fish: `ironboot completion fish | source`, or this as ironboot.fish in
# ~/.config/fish/completions.
complete --command ironboot --no-files --keep-order --arguments '(
    ironboot complete -- (commandline --current-process --tokenize --cut-at-cursor) \
        (commandline --current-token --cut-at-cursor) 2>/dev/null
)'

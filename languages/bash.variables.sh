(inherited=" $(tr '\0' '\n' < /proc/$$/environ | cut -d= -f1 | tr '\n' ' ')"
while IFS= read -r name; do
case "$name" in BASH*|COMP_*|HIST*|EPOCH*|PS[0-4]|PROMPT_*|SHELL*|DIRSTACK|EUID|FUNCNAME|GROUPS|HOSTNAME|HOSTTYPE|IFS|LINENO|MACHTYPE|MAILCHECK|OPTARG|OPTERR|OPTIND|OSTYPE|PIPESTATUS|PPID|RANDOM|SRANDOM|SECONDS|SHLVL|UID|COLUMNS|LINES|TERM|PWD|OLDPWD|PAGER|_|inherited|name|kind) continue;; esac
case "$inherited" in *" $name "*) continue;; esac
kind=${!name@a}
case "$kind" in *[aA]*) declare -n list=$name; printf '%s\tarray\t%s items\n' "$name" "${#list[@]}";; *i*) printf '%s\tinteger\t%.300s\n' "$name" "${!name}";; *) printf '%s\ttext\t%.300s\n' "$name" "${!name@Q}";; esac
done < <(compgen -v)) 2>/dev/null | head -n MOST > PATH

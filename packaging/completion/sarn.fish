complete -c sarn -f -a '(COMP_LINE=(commandline -cp) /usr/bin/sarn)'

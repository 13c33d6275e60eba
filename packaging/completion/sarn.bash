complete -o nospace -C /usr/bin/sarn sarn

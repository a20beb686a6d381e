#!/bin/sh
# A token, and certificates that an authority of this stack's own signs, for servers under some names:
#   certificates.sh FOLDER NAME...        writes token, ca.pem, cert.pem, key.pem
# What is there stays. The authority's key is thrown away, so that nobody can sign with it: for another name, or after the
# 825 days, empty the folder and start servers and trainers anew.
set -eu
umask 077
folder=$1
shift
cd "$folder"
if [ -s token ] && [ -s cert.pem ]; then
  exit 0
fi
names=
for name in "$@"; do
  case $name in
    *[!0-9.]*) names="$names,DNS:$name" ;;
    *) names="$names,IP:$name" ;;
  esac
done
openssl rand -hex 32 > token
openssl req -x509 -newkey rsa:3072 -nodes -days 825 -subj "/CN=softshard authority" -out ca.pem -keyout ca.key 2> /dev/null
openssl req -new -newkey rsa:3072 -nodes -subj "/CN=softshard server" -out server.csr -keyout key.pem 2> /dev/null
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "${names#,}" > extensions
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile extensions -out new.pem 2> /dev/null
mv new.pem cert.pem
rm -f ca.key ca.srl server.csr extensions

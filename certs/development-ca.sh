#!/bin/sh
# Makes a certificate authority for development and certificates for hosts signed by it.
#
#   certs/development-ca.sh FOLDER HOST [HOST ...]
#
# FOLDER/ca.pem and FOLDER/ca.key are made once and kept; FOLDER/HOST.pem and FOLDER/HOST.key are made anew
# on every run. Trust ca.pem in a client to test real certificate checks without accepting single
# certificates. Never use it for a public server: whoever has ca.key can pose as any host to its clients.
set -eu

[ $# -ge 2 ] || { echo "usage: $0 FOLDER HOST [HOST ...]" >&2; exit 2; }
command -v openssl >/dev/null || { echo "$0: openssl is not installed" >&2; exit 1; }

folder=$1
shift
umask 077
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

new_key() {
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"
}

if [ ! -e "$folder/ca.key" ]; then
    new_key "$work/ca.key"
    openssl req -x509 -new -sha256 -days 3650 -key "$work/ca.key" -out "$work/ca.pem" \
        -subj "/CN=Waystation development CA $(date -u +%Y-%m-%d)" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
    mv "$work/ca.key" "$folder/ca.key"
    mv "$work/ca.pem" "$folder/ca.pem"
    chmod 644 "$folder/ca.pem"
fi

for host in "$@"; do
    case $host in
        '' | -* | *[!A-Za-z0-9._-]*)
            echo "$0: '$host' is not a host name (give the A-label, xn--..., of an international one)" >&2
            exit 2
            ;;
    esac
    new_key "$work/host.key"
    # Clients read the names below, never the subject, which could not hold a long one.
    openssl req -new -sha256 -key "$work/host.key" -subj "/O=Waystation development" -out "$work/host.csr"
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        # A server is a client too when it connects to another server.
        echo "extendedKeyUsage=serverAuth,clientAuth"
        echo "subjectAltName=@names"
        echo "[names]"
        echo "DNS.1=$host"
        # Services of the host, such as conference.HOST.
        echo "DNS.2=*.$host"
        # RFC 6120 section 13.7.1.2: an SRVName and, for older peers, an XmppAddr.
        echo "otherName.1=1.3.6.1.5.5.7.8.7;IA5STRING:_xmpp-client.$host"
        echo "otherName.2=1.3.6.1.5.5.7.8.7;IA5STRING:_xmpp-server.$host"
        echo "otherName.3=1.3.6.1.5.5.7.8.5;UTF8:$host"
        if [ "$host" = localhost ]; then
            echo "IP.1=127.0.0.1"
            echo "IP.2=::1"
        fi
    } >"$work/extensions"
    # 825 days is the longest validity that common clients accept.
    openssl x509 -req -sha256 -days 825 -in "$work/host.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/host.pem" \
        2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    chmod 644 "$work/host.pem"
    mv "$work/host.key" "$folder/$host.key"
    mv "$work/host.pem" "$folder/$host.pem"
    echo "$folder/$host.pem $folder/$host.key"
done

//! Connections between servers, with OpenSSL as the other one.

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use waystation_transport::{Connection, HostCertificate, ReadOutcome, TlsConnector};

use crate::common::*;
use crate::servers::*;

/// An `openssl s_server` on a port of its own, for one connection; ended on drop.
struct OpensslServer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl OpensslServer {
    fn start(files: &HostCertificate, arguments: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert"])
            .arg(&files.chain)
            .arg("-key")
            .arg(&files.key)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl must be installed for these tests");
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "openssl does not listen");
            if let Some(address) = line.strip_prefix("ACCEPT ") {
                break address.trim().parse().unwrap();
            }
        };
        Self { stdin: child.stdin.take(), child, stdout: Some(stdout), address }
    }

    /// Types a line: it is sent, unless it is one of OpenSSL's commands.
    fn line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// All that it printed, up to its end.
    fn output(mut self) -> impl Future<Output = String> {
        let mut stdout = self.stdout.take().unwrap();
        drop(self.stdin.take());
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut text = Vec::new();
                std::io::Read::read_to_end(&mut stdout, &mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            });
            let text = read.await.unwrap();
            drop(self);
            text
        }
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn our_client_and_openssl() {
    let certificates = Certificates::new(&["one.example", "peer.example"]);
    for version in ["-tls1_3", "-tls1_2"] {
        run(async {
            let connector = TlsConnector::new(&certificates.acceptor());
            let mut peer = OpensslServer::start(
                &certificates.hosts[1],
                &[version, "-verify", "3", "-alpn", "xmpp-server"],
            );
            let mut client = Connection::connect(peer.address, PATIENCE).await.unwrap();
            client.connect_tls(&connector, "one.example", "peer.example", true, b"").await.unwrap();
            assert_eq!(client.alpn(), Some(&b"xmpp-server"[..]));
            assert_eq!(client.peer_certificates(), [certificate(&certificates.hosts[1])]);
            peer.line("from openssl\n");
            assert_eq!(read_until(&mut client, |got| got.len() >= 13).await.unwrap().0, b"from openssl\n");
            if version == "-tls1_3" {
                // An update of keys that asks for ours.
                peer.line("K\n");
                let read = client.read_some(1000, &mut |_| panic!("nothing was sent")).await.unwrap();
                assert!(matches!(read, ReadOutcome::Data { bytes: 0, wire: 1.., .. }), "{read:?}");
                peer.line("after it\n");
                assert_eq!(read_until(&mut client, |got| got.len() >= 9).await.unwrap().0, b"after it\n");
            }
            client.queue_slice(b"from us\n");
            client.flush().await.unwrap();
            client.close(PATIENCE).await;
            let said = peer.output().await;
            assert!(said.contains("from us\n"), "{said}");
            assert!(said.contains("Client certificate"), "{said}");
        });
    }
}

#[test]
fn our_server_and_openssl() {
    let certificates = Certificates::new(&["localhost", "peer.example"]);
    let [cert, key] = [&certificates.hosts[1].chain, &certificates.hosts[1].key];
    let presented = ["-cert", cert.to_str().unwrap(), "-key", key.to_str().unwrap()];
    for version in ["-tls1_3", "-tls1_2"] {
        for with_certificate in [true, false] {
            run(async {
                let acceptor = certificates.acceptor().for_servers();
                let mut arguments = vec![version, "-ign_eof"];
                if with_certificate {
                    arguments.extend(presented);
                }
                let (chain, client) = openssl(&arguments, b"", async |mut server: Connection| {
                    server.handshake(&acceptor, None, b"").await.unwrap();
                    let chain = server.peer_certificates().to_vec();
                    server.queue_slice(b"hello from the server\n");
                    server.flush().await.unwrap();
                    server.close(PATIENCE).await;
                    chain
                })
                .await;
                let expected: &[_] =
                    if with_certificate { &[certificate(&certificates.hosts[1])] } else { &[] };
                assert_eq!(chain, expected, "{version}");
                assert!(client.text.contains("hello from the server"), "{}", client.text);
            });
        }
    }
}

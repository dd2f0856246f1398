//! Authoritative servers, played by hand: what they are asked, and what they answer.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::common::*;

/// A question that an authoritative server was asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) id: String,
    pub(crate) key: String,
}

impl Question {
    /// The answer to it of this type.
    pub(crate) fn answered(&self, verdict: &str) -> String {
        let Self { from, to, id, .. } = self;
        format!("<db:verify from='{to}' to='{from}' id='{id}' type='{verdict}'/>")
    }

    /// An error.
    pub(crate) fn refused(&self, condition: &str) -> String {
        let Self { from, to, id, .. } = self;
        format!(
            "<db:verify from='{to}' to='{from}' id='{id}' type='error'><error type='cancel'>\
             <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></db:verify>"
        )
    }
}

/// An authoritative server, for any domain.
pub(crate) struct Authority {
    pub(crate) port: u16,
    questions: mpsc::Receiver<Question>,
}

impl Authority {
    /// One that answers as told, and says nothing more; `None` is no answer at all.
    pub(crate) async fn start(answer: impl Fn(&Question) -> Option<String> + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, questions) = mpsc::channel(2_000);
        let answer = std::rc::Rc::new(answer);
        // Its own authority signs for it: dialback asks for no more.
        let key = Ca::new().issue(&["authority.invalid"]);
        actix_rt::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (told, answer, key) = (told.clone(), answer.clone(), key.clone());
                actix_rt::spawn(async move {
                    let mut peer = serve_tls(Peer::of(socket), key).await;
                    peer.until(" version='1.0'").await;
                    peer.until(">").await;
                    peer.send(&format!(
                        "{}<stream:features><dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback>\
                         </stream:features>",
                        header("id='second' version='1.0'")
                    ))
                    .await;
                    let asked = peer.until("</db:").await + &peer.until(">").await;
                    if asked.contains("<db:result") {
                        // It is no receiving server.
                        return;
                    }
                    let key = asked.split_once("<db:verify").unwrap().1.split_once('>').unwrap().1;
                    let question = Question {
                        from: attribute(&asked, "from"),
                        to: attribute(&asked, "to"),
                        id: attribute(&asked, "id"),
                        key: key.trim_end_matches("</db:verify>").to_owned(),
                    };
                    let answer = answer(&question);
                    told.try_send(question).unwrap();
                    if let Some(answer) = answer {
                        peer.send(&answer).await;
                    }
                    // Until it is left.
                    while matches!(peer.wire.read_buf(&mut peer.received).await, Ok(1..)) {}
                });
            }
        });
        Self { port, questions }
    }

    /// One that says yes to all.
    pub(crate) async fn agreeing() -> Self {
        Self::start(|question| Some(question.answered("valid"))).await
    }

    /// The next question.
    pub(crate) async fn asked(&mut self) -> Question {
        tokio::time::timeout(PATIENCE, self.questions.recv()).await.expect("nothing was asked").unwrap()
    }

    pub(crate) fn assert_not_asked(&mut self) {
        assert!(self.questions.try_recv().is_err(), "the authoritative server was asked");
    }
}

async fn serve_tls(mut peer: Peer, key: Arc<CertifiedKey>) -> Peer {
    peer.until(" version='1.0'").await;
    peer.until(">").await;
    peer.send(&format!(
        "{}<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>",
        header("id='first' version='1.0'")
    ))
    .await;
    peer.until("<starttls").await;
    peer.until(">").await;
    peer.send("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Presented(key)));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    Peer::of(acceptor.accept(peer.wire).await.unwrap())
}

//! Plays a scenario against a running server.
//!
//! Strict about order: `receives` takes the very next stanza. "Nothing else" is
//! proven by barriers, not by waiting: every other client sends this one a
//! message, which the server must deliver after all that came before it
//! (RFC 6120 10.1), and then this client's ping is answered; whatever the
//! steps before caused has arrived by then.

use std::collections::{BTreeMap, VecDeque};

use crate::client::{Client, Login, Security};
use crate::error::{Error, Result};
use crate::pattern::{Bindings, compare, substitute};
use crate::scenario::script::{Script, Step};
use crate::server::{Account, Endpoint};
use crate::stream::RawClient;
use crate::xml::{Element, escape};

const BARRIER_NS: &str = "urn:x-waystation:barrier";

/// Plays `script`; `account` gives the real account for a name in the file. The error tells the line.
pub async fn run(
    script: &Script,
    at: &Endpoint,
    account: impl Fn(&str) -> Account,
) -> std::result::Result<(), String> {
    let mut stage = Stage::new(script, at, account);
    for (line, step) in &script.steps {
        stage.play(step).await.map_err(|e| format!("line {line}: {e}"))?;
    }
    Ok(())
}

struct Player {
    account: Account,
    resource: String,
    client: Option<Client>,
    /// A stream that did not log in.
    stranger: Option<RawClient>,
    /// Stanzas that arrived while something else was waited for.
    waiting: VecDeque<Element>,
}

struct Stage<'a> {
    at: &'a Endpoint,
    players: BTreeMap<String, Player>,
    bindings: Bindings,
    count: u64,
}

impl<'a> Stage<'a> {
    fn new(script: &Script, at: &'a Endpoint, account: impl Fn(&str) -> Account) -> Self {
        let mut bindings = Bindings::from([("host".to_owned(), at.host.clone())]);
        for name in &script.strangers {
            let nobody = account(&format!("no-{}", name.to_lowercase()));
            bindings.insert(name.clone(), nobody.jid());
        }
        let mut players = BTreeMap::new();
        for (name, actor) in &script.actors {
            let account = account(&actor.account);
            bindings.insert(name.clone(), account.jid());
            bindings.insert(format!("{name} full"), format!("{}/{}", account.jid(), actor.resource));
            bindings.insert(format!("{name} name"), account.user.clone());
            let (resource, waiting) = (actor.resource.clone(), VecDeque::new());
            players.insert(name.clone(), Player { account, resource, client: None, stranger: None, waiting });
        }
        Self { at, players, bindings, count: 0 }
    }

    async fn play(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Contacts(a, b) => {
                self.subscribe(a, b).await?;
                self.subscribe(b, a).await
            }
            Step::Subscribed(a, b) => self.subscribe(a, b).await,
            Step::Connect(name) => self.connect(name).await,
            Step::ConnectOnly(name) => {
                let (mut raw, _) = Client::open(self.at, &self.at.host, Security::None).await?;
                raw.set_patience(crate::stream::PATIENCE);
                self.player(name)?.stranger = Some(raw);
                Ok(())
            }
            Step::ComeOnline(name, presence) => self.come_online(name, presence.as_deref()).await,
            Step::FetchRoster(name) => self.fetch_roster(name).await,
            Step::Send(name, xml) => {
                let xml = self.fill_in(xml)?;
                match &mut self.player(name)?.stranger {
                    Some(raw) => raw.send(xml).await,
                    None => self.client(name)?.send(xml).await,
                }
            }
            Step::Receive(name, patterns) => {
                for pattern in patterns {
                    let stanza = self.next(name).await?;
                    compare(pattern, &stanza, &mut self.bindings)
                        .map_err(|e| mismatch(&e, pattern, &stanza))?;
                }
                Ok(())
            }
            Step::ReceiveAnyOrder(name, patterns) => self.receive_any_order(name, patterns).await,
            Step::MayReceive(name, patterns) => self.may_receive(name, patterns).await,
            Step::NothingElse(name) => match self.all_that_came(name).await?.as_slice() {
                [] => Ok(()),
                some => {
                    let text: Vec<String> = some.iter().map(ToString::to_string).collect();
                    Err(Error::unexpected(
                        format!("nothing more for {name}"),
                        format!("\n{}", text.join("\n")),
                    ))
                }
            },
            Step::Ping(name) => {
                let before = self.client(name)?.drain().await?;
                self.player(name)?.waiting.extend(before);
                Ok(())
            }
            Step::Disconnect(name) => self.take(name)?.close().await,
            Step::Break(name) => self.take(name)?.reset(),
            Step::ThrownOut(name, condition) => match self.player(name)?.stranger.take() {
                Some(mut raw) => raw.expect_stream_error(condition).await,
                None => self.take(name)?.raw().expect_stream_error(condition).await,
            },
            Step::Offered(name, patterns) => {
                let features = self.client(name)?.features().clone();
                for pattern in patterns {
                    let found =
                        features.children().any(|f| compare(pattern, f, &mut self.bindings.clone()).is_ok());
                    if !found {
                        return Err(Error::unexpected(
                            format!("the feature {pattern}"),
                            features.to_string(),
                        ));
                    }
                }
                Ok(())
            }
        }
    }

    async fn connect(&mut self, name: &str) -> Result<()> {
        let at = self.at;
        let player = self.player(name)?;
        if player.client.is_some() {
            return Err(Error::Setup(format!("{name} is connected already")));
        }
        player.waiting.clear();
        let client = Client::login(at, &player.account, &Login::resource(&player.resource)).await?;
        let jid = client.jid().to_owned();
        player.client = Some(client);
        self.bindings.insert(format!("{name} full"), jid);
        Ok(())
    }

    async fn come_online(&mut self, name: &str, presence: Option<&str>) -> Result<()> {
        if self.player(name)?.client.is_none() {
            self.connect(name).await?;
        }
        let presence = self.fill_in(presence.unwrap_or("<presence/>"))?;
        let client = self.client(name)?;
        client.send(presence).await?;
        // Whoever becomes available is told so itself (RFC 6121 4.2.2); the rest is the scenario's business.
        let own = client.jid().to_owned();
        let mut others = VecDeque::new();
        loop {
            let stanza = client.next("the own presence").await?;
            if stanza.local() == "presence"
                && stanza.attr("from") == Some(&own)
                && stanza.attr("type").is_none()
            {
                break;
            }
            others.push_back(stanza);
        }
        self.player(name)?.waiting.extend(others);
        Ok(())
    }

    async fn fetch_roster(&mut self, name: &str) -> Result<()> {
        self.count += 1;
        let id = format!("roster-{}", self.count);
        let client = self.client(name)?;
        client.send(format!("<iq type='get' id='{id}'><query xmlns='jabber:iq:roster'/></iq>")).await?;
        let mut others = Vec::new();
        loop {
            let stanza = client.next("the roster").await?;
            if stanza.attr("id") != Some(&id) {
                others.push(stanza);
            } else if stanza.attr("type") == Some("result") {
                break;
            } else {
                return Err(Error::unexpected("the roster", stanza.to_string()));
            }
        }
        self.player(name)?.waiting.extend(others);
        Ok(())
    }

    /// Lets one account subscribe to another by the usual exchange, in sessions of its own.
    async fn subscribe(&mut self, from: &str, to: &str) -> Result<()> {
        let (user, contact) = (self.player(from)?.account.clone(), self.player(to)?.account.clone());
        let mut asking = Client::login(self.at, &user, &Login::resource("prologue")).await?;
        let mut asked = Client::login(self.at, &contact, &Login::resource("prologue")).await?;
        let (user, contact) = (user.jid(), contact.jid());
        for client in [&mut asking, &mut asked] {
            // Only who asked for the roster is told of approvals (RFC 6121 3.1.6).
            client.send("<iq type='get' id='prologue'><query xmlns='jabber:iq:roster'/></iq>").await?;
            client.become_available().await?;
        }
        asking.send(format!("<presence to='{}' type='subscribe'/>", escape(&contact))).await?;
        until_presence(&mut asked, "subscribe", &user).await?;
        asked.send(format!("<presence to='{}' type='subscribed'/>", escape(&user))).await?;
        until_presence(&mut asking, "subscribed", &contact).await?;
        for mut client in [asking, asked] {
            // Presence of these sessions that comes late would be seen by the next ones.
            client.send("<presence type='unavailable'/>").await?;
            client.drain().await?;
            client.close().await?;
        }
        Ok(())
    }

    async fn receive_any_order(&mut self, name: &str, patterns: &[Element]) -> Result<()> {
        let mut open: Vec<&Element> = patterns.iter().collect();
        while !open.is_empty() {
            let stanza = self.next(name).await?;
            let bindings = &mut self.bindings;
            let Some(found) = open.iter().position(|pattern| compare(pattern, &stanza, bindings).is_ok())
            else {
                let expected: Vec<String> = open.iter().map(ToString::to_string).collect();
                return Err(Error::unexpected(
                    format!("one of:\n{}\n", expected.join("\n")),
                    format!("\n{stanza}"),
                ));
            };
            open.remove(found);
        }
        Ok(())
    }

    async fn may_receive(&mut self, name: &str, patterns: &[Element]) -> Result<()> {
        let mut came: VecDeque<Element> = self.all_that_came(name).await?.into();
        for pattern in patterns {
            let fits = came.front().is_some_and(|s| compare(pattern, s, &mut self.bindings).is_ok());
            if fits {
                came.pop_front();
            }
        }
        self.player(name)?.waiting = came;
        Ok(())
    }

    /// Everything that reached this client and was not consumed, proven complete by barriers.
    async fn all_that_came(&mut self, name: &str) -> Result<Vec<Element>> {
        self.count += 1;
        let marker = format!("barrier-{}", self.count);
        let jid = self.client(name)?.jid().to_owned();
        let mut expected = 0;
        for (other, player) in &mut self.players {
            if let (true, Some(client)) = (other != name, &mut player.client) {
                let barrier = format!(
                    "<message to='{}' id='{marker}'><barrier xmlns='{BARRIER_NS}'/></message>",
                    escape(&jid)
                );
                client.send(barrier).await?;
                expected += 1;
            }
        }
        let player = self.player(name)?;
        let mut rest: Vec<Element> = player.waiting.drain(..).collect();
        let client = player.client.as_mut().ok_or_else(|| not_connected(name))?;
        while expected > 0 {
            let stanza = client.next("a barrier message").await?;
            let is_barrier = stanza.attr("id") == Some(&marker) && stanza.child_in(BARRIER_NS).is_some();
            if is_barrier { expected -= 1 } else { rest.push(stanza) }
        }
        rest.extend(client.drain().await?);
        rest.retain(|stanza| !is_optional(stanza));
        Ok(rest)
    }

    async fn next(&mut self, name: &str) -> Result<Element> {
        let player = self.player(name)?;
        loop {
            let stanza = match (player.waiting.pop_front(), &mut player.stranger, &mut player.client) {
                (Some(stanza), _, _) => stanza,
                (None, Some(raw), _) => raw.next_element(&format!("a stanza for {name}")).await?,
                (None, None, Some(client)) => client.next(&format!("a stanza for {name}")).await?,
                (None, None, None) => return Err(not_connected(name)),
            };
            if !is_optional(&stanza) {
                return Ok(stanza);
            }
        }
    }

    fn player(&mut self, name: &str) -> Result<&mut Player> {
        self.players.get_mut(name).ok_or_else(|| Error::Setup(format!("no client {name}")))
    }

    fn client(&mut self, name: &str) -> Result<&mut Client> {
        self.player(name)?.client.as_mut().ok_or_else(|| not_connected(name))
    }

    fn take(&mut self, name: &str) -> Result<Client> {
        self.player(name)?.client.take().ok_or_else(|| not_connected(name))
    }

    fn fill_in(&self, xml: &str) -> Result<String> {
        substitute(xml, &self.bindings).map_err(Error::Setup)
    }
}

async fn until_presence(client: &mut Client, kind: &str, from: &str) -> Result<()> {
    loop {
        let stanza = client.next(&format!("presence {kind} from {from}")).await?;
        let is_it = stanza.local() == "presence"
            && stanza.attr("type") == Some(kind)
            && stanza.attr("from").is_some_and(|f| f.split('/').next() == Some(from));
        if is_it {
            return Ok(());
        }
    }
}

/// Unavailable presence from a bare JID: a server may answer so for a contact that is offline
/// (RFC 6121 4.3.2) or acknowledge a subscription request (3.1.3), or not; scenarios do not see it.
fn is_optional(stanza: &Element) -> bool {
    stanza.local() == "presence"
        && stanza.attr("type") == Some("unavailable")
        && stanza.attr("from").is_some_and(|from| !from.contains('/'))
}

fn not_connected(name: &str) -> Error {
    Error::Setup(format!("{name} is not connected"))
}

fn mismatch(why: &str, pattern: &Element, stanza: &Element) -> Error {
    Error::unexpected(format!("\n{pattern}\n"), format!("\n{stanza}\n({why})"))
}

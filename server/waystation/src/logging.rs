//! Logs: one line an event to standard error, as text or JSON, with a level for each part.
//!
//! What must hold: no text from outside can make a line look like another, or reach a terminal as
//! anything but visible characters, whichever part of an event it is in; a log that cannot be
//! written never stops the server.

pub(crate) mod escape;

use std::fmt::{self, Write};
use std::panic::PanicHookInfo;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use waystation_config::{Log, LogFormat};

/// Starts logging for the whole process and reports panics through it.
///
/// # Errors
/// When logging has been started already.
pub(crate) fn start(log: &Log) -> Result<(), TryInitError> {
    subscriber(log, std::io::stderr).try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn subscriber<W>(log: &Log, writer: W) -> impl Subscriber + SubscriberInitExt + Send + Sync + use<W>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = Targets::new()
        .with_default(level(log.level))
        // An entry of these in `log.modules` prevails. The store's engine tells of each of its files
        // at level info; HTTP calls every malformed request of a client an error.
        .with_targets([
            ("actix_http", LevelFilter::OFF),
            ("fjall", level(log.level).min(LevelFilter::WARN)),
            ("lsm_tree", level(log.level).min(LevelFilter::WARN)),
        ])
        .with_targets(log.modules.0.iter().map(|(name, module)| (name.clone(), level(*module))));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // It would write to standard error with a macro that panics when that is closed.
        .log_internal_errors(false)
        .fmt_fields(Fields(log.format))
        .event_format(Line(log.format));
    tracing_subscriber::registry().with(filter).with(lines)
}

fn level(level: waystation_config::Level) -> LevelFilter {
    use waystation_config::Level as Chosen;
    match level {
        Chosen::Off => LevelFilter::OFF,
        Chosen::Error => LevelFilter::ERROR,
        Chosen::Warn => LevelFilter::WARN,
        Chosen::Info => LevelFilter::INFO,
        Chosen::Debug => LevelFilter::DEBUG,
        Chosen::Trace => LevelFilter::TRACE,
    }
}

/// Logs where a panic happened and what it said; nothing else of the process's state.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let said = panic.payload_as_str().unwrap_or("a value that is no text");
    tracing::error!(target: "waystation::panic", thread = thread.name(), place, said, "panicked at {place}");
}

/// Writes an event as one line.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut parts = Parts::new(self.0);
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                parts.join(&fields.fields);
            }
        }
        event.record(&mut parts);
        let metadata = event.metadata();
        let target = parts.log_target.as_deref().unwrap_or(metadata.target());
        match self.0 {
            LogFormat::Text => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {:>5} {target}: {}", metadata.level(), parts.message)?;
                if !parts.fields.is_empty() {
                    write!(out, " {}", parts.fields)?;
                }
                out.write_char('\n')
            }
            LogFormat::Json => {
                out.write_str("{\"time\":\"")?;
                SystemTime.format_time(&mut out)?;
                write!(out, "\",\"level\":\"{}\",\"target\":", metadata.level())?;
                escape::write_json(&mut out, target)?;
                let message = if parts.message.is_empty() { "\"\"" } else { &parts.message };
                writeln!(out, ",\"message\":{message},\"fields\":{{{}}}}}", parts.fields)
            }
        }
    }
}

/// Writes the fields of a span in the form that [`Line`] puts into its lines.
struct Fields(LogFormat);

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut out: Writer<'w>,
        fields: R,
    ) -> fmt::Result {
        let mut parts = Parts::new(self.0);
        fields.record(&mut parts);
        out.write_str(&parts.fields)
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let mut parts = Parts::new(self.0);
        parts.join(&current.fields);
        fields.record(&mut parts);
        current.fields = parts.fields;
        Ok(())
    }
}

/// Collects the fields of an event, escaped.
struct Parts {
    format: LogFormat,
    message: String,
    fields: String,
    /// The target of an event that came by way of the `log` crate, which has none of its own.
    log_target: Option<String>,
}

impl Parts {
    fn new(format: LogFormat) -> Self {
        Self { format, message: String::new(), fields: String::new(), log_target: None }
    }

    /// Appends fields that are written already.
    fn join(&mut self, fields: &str) {
        if !self.fields.is_empty() && !fields.is_empty() {
            self.fields.push(if self.format == LogFormat::Json { ',' } else { ' ' });
        }
        self.fields.push_str(fields);
    }

    /// A value that is written by itself or as a string.
    fn add(&mut self, field: &Field, value: &str, is_plain: bool) {
        match field.name() {
            "message" => {
                self.message.clear();
                // Writing to a String cannot fail.
                let _ = match self.format {
                    LogFormat::Text => escape::write_text(&mut self.message, value, false),
                    LogFormat::Json => escape::write_json(&mut self.message, value),
                };
            }
            "log.target" => self.log_target = Some(value.to_owned()),
            // Where in its source code a `log` record was made.
            name if name.starts_with("log.") => {}
            name => {
                let mut written = String::new();
                let _ = self.write_field(&mut written, name, value, is_plain);
                self.join(&written);
            }
        }
    }

    fn write_field(&self, out: &mut String, name: &str, value: &str, is_plain: bool) -> fmt::Result {
        match self.format {
            LogFormat::Text => {
                write!(out, "{name}=")?;
                let bare = |b: u8| b.is_ascii_alphanumeric() || b"@/.:_-+[]%".contains(&b);
                if is_plain
                    || (!value.is_empty() && value.len() <= escape::MAX_TEXT && value.bytes().all(bare))
                {
                    return out.write_str(value);
                }
                out.write_char('"')?;
                escape::write_text(out, value, true)?;
                out.write_char('"')
            }
            LogFormat::Json => {
                write!(out, "\"{name}\":")?;
                if is_plain { out.write_str(value) } else { escape::write_json(out, value) }
            }
        }
    }
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value, false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string(), true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string(), true);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string(), true);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinity.
        self.add(field, &value.to_string(), value.is_finite());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        self.add(field, &text, false);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"), false);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use waystation_config::{Level as Chosen, LogModules};

    use super::*;

    /// A log that is kept in memory.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log_of(log: &Log, act: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        tracing::subscriber::with_default(subscriber(log, move || writer.clone()), act);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    fn text(act: impl FnOnce()) -> String {
        log_of(&Log::default(), act)
    }

    fn json(act: impl FnOnce()) -> Vec<serde_json::Value> {
        let log = log_of(&Log { format: LogFormat::Json, ..Log::default() }, act);
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    const HOSTILE: [&str; 6] = [
        "a\nINFO forged: line",
        "a\r\nb",
        "\u{1b}[2J\u{1b}]0;x\u{7}",
        "\u{202e}txt.exe",
        "a=\"b\" c=d",
        "\u{9b}2J",
    ];

    #[test]
    fn m16_nothing_from_outside_breaks_a_line() {
        for hostile in HOSTILE {
            let log = || {
                let span = tracing::info_span!("session", jid = hostile, also = tracing::field::Empty);
                let _entered = span.enter();
                span.record("also", hostile);
                tracing::info!(shown = %hostile, debugged = ?hostile, text = hostile, "message {hostile}");
                let error = io::Error::other(hostile);
                tracing::info!(error = &error as &dyn std::error::Error);
            };
            let lines = text(log);
            assert_eq!(lines.matches('\n').count(), 2, "{lines:?}");
            assert!(!lines.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{lines:?}");
            assert!(!lines.contains(" forged") || lines.contains("\\nINFO forged"), "{lines:?}");
            let records = json(log);
            assert_eq!(records.len(), 2);
            assert_eq!(records[0]["message"], format!("message {hostile}"));
            for field in ["shown", "text", "jid", "also"] {
                assert_eq!(records[0]["fields"][field], hostile, "{field}");
            }
            assert_eq!(records[0]["fields"]["debugged"], format!("{hostile:?}"));
            assert_eq!(records[1]["fields"]["error"], hostile);
        }
    }

    #[test]
    fn m16_a_quoted_value_cannot_pose_as_another_field() {
        let lines = text(|| tracing::info!(resource = "a\" admin=\"yes", "bound"));
        assert!(lines.ends_with(" bound resource=\"a\\\" admin=\\\"yes\"\n"), "{lines}");
    }

    #[test]
    fn lines_have_time_level_target_message_and_fields() {
        let line = text(|| {
            let span = tracing::info_span!("session", jid = "ann@localhost/phone");
            let _entered = span.enter();
            tracing::warn!(target: "waystation_c2s", count = 3, ratio = 0.5, ok = true, reason = "too slow", "closed");
        });
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.starts_with("20"), "{time}");
        assert_eq!(
            rest,
            " WARN waystation_c2s: closed jid=ann@localhost/phone count=3 ratio=0.5 ok=true reason=\"too slow\"\n"
        );
        let record = &json(|| tracing::error!(count = 3_u64, not = f64::NAN, "failed"))[0];
        assert_eq!(record["level"], "ERROR");
        assert_eq!(record["message"], "failed");
        assert_eq!(record["fields"]["count"], 3);
        assert_eq!(record["fields"]["not"], "NaN");
        assert_eq!(json(|| tracing::info!(only = "fields"))[0]["message"], "");
    }

    #[test]
    fn each_part_has_its_level() {
        let modules = [("a::b".to_owned(), Chosen::Debug), ("c".to_owned(), Chosen::Off)].into();
        let log = Log { level: Chosen::Warn, modules: LogModules(modules), ..Log::default() };
        let lines = log_of(&log, || {
            tracing::info!(target: "a", "no 1");
            tracing::warn!(target: "a", "yes 1");
            tracing::debug!(target: "a::b::c", "yes 2");
            tracing::trace!(target: "a::b", "no 2");
            tracing::error!(target: "c", "no 3");
        });
        assert_eq!(lines.matches("yes").count(), 2, "{lines}");
        assert!(!lines.contains("no "), "{lines}");
    }

    #[test]
    fn m16_a_panic_is_one_line_with_its_place() {
        let lines = text(|| {
            // Other tests run beside this one: their panics go the usual way.
            let (this, usual) = (std::thread::current().id(), std::panic::take_hook());
            std::panic::set_hook(Box::new(move |panic| {
                if std::thread::current().id() == this { log_panic(panic) } else { usual(panic) }
            }));
            let _ = std::panic::catch_unwind(|| panic!("what a {}", "mess\n\u{1b}[2J"));
            let _ = std::panic::take_hook();
        });
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(lines.contains("ERROR waystation::panic: panicked at "), "{lines}");
        assert!(lines.contains("logging.rs:"), "{lines}");
        assert!(lines.contains(r#"said="what a mess\n\u{1b}[2J""#), "{lines}");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_reason_to_panic() {
        struct Broken;
        impl io::Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        tracing::subscriber::with_default(subscriber(&Log::default(), || Broken), || tracing::error!("lost"));
    }
}

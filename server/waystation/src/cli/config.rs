//! `waystation config ...`

use super::arguments::{CheckConfig, ConfigCommand, Settings, ShowConfig};
use super::{CliError, output};

pub(super) fn run(command: ConfigCommand, settings: Settings) -> Result<(), CliError> {
    match command {
        ConfigCommand::Check(CheckConfig { file, settings: more }) => {
            let mut settings = settings.and(more);
            settings.config = file.or(settings.config);
            let name = settings.config.as_ref().map(|file| file.display().to_string());
            super::load(settings)?;
            match name {
                Some(name) => output::line(format_args!("{name} is right"))?,
                None => output::line(format_args!("the configuration is right; no file was named"))?,
            }
            Ok(())
        }
        ConfigCommand::Show(ShowConfig { json, settings: more }) => {
            let shown = super::load(settings.and(more))?.show();
            if !json {
                output::text(&shown)?;
                return Ok(());
            }
            let value: serde_json::Value = toml::from_str(&shown)
                .map_err(|error| CliError::Failed(format!("the configuration cannot be shown: {error}")))?;
            Ok(output::json(&value)?)
        }
        ConfigCommand::Reference => Ok(output::text(&waystation_config::reference())?),
    }
}

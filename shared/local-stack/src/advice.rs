//! What to type when a server is missing and may not be installed without asking.

use std::env;
use std::path::Path;

use crate::account::root;
use crate::home::Home;
use crate::provision::Wanted;

/// Whose packages this machine uses, as the index into [`Wanted::packages`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Debian,
    Fedora,
    MacOs,
}

impl System {
    const ALL: [Self; 3] = [Self::Debian, Self::Fedora, Self::MacOs];

    /// `None` on a system that we do not know.
    pub(crate) fn here() -> Option<Self> {
        if cfg!(target_os = "macos") {
            Some(Self::MacOs)
        } else if Path::new("/etc/debian_version").exists() {
            Some(Self::Debian)
        } else {
            Path::new("/usr/bin/dnf").exists().then_some(Self::Fedora)
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Debian => "Debian, Ubuntu:",
            Self::Fedora => "Fedora:",
            Self::MacOs => "macOS:",
        }
    }

    fn command(self, packages: &str, rights: Rights) -> String {
        match self {
            Self::Debian => rights.command(&["apt-get update", &format!("apt-get install -y {packages}")]),
            Self::Fedora => rights.command(&[&format!("dnf install -y {packages}")]),
            Self::MacOs => format!("brew install {packages}"),
        }
    }
}

/// How the person at the terminal runs a command as root.
#[derive(Clone, Copy)]
pub(crate) enum Rights {
    Root,
    Sudo,
    Su,
}

impl Rights {
    pub(crate) fn here(home: &Home) -> Self {
        let sudo = || env::split_paths(&home.options.search_path()).any(|folder| folder.join("sudo").is_file());
        if root() {
            Self::Root
        } else if sudo() {
            Self::Sudo
        } else {
            Self::Su
        }
    }

    fn command(self, steps: &[&str]) -> String {
        match self {
            Self::Root => steps.join(" && "),
            Self::Sudo => format!("sudo {}", steps.join(" && sudo ")),
            // Without `-` the PATH stays that of the user, who may have no /usr/sbin there, which dpkg needs.
            Self::Su => format!("su - -c '{}'", steps.join(" && ")),
        }
    }
}

/// The ways out, as commands for this system; for an unknown one those of all others.
pub(crate) fn help(missing: &[Wanted], system: Option<System>, rights: Rights) -> String {
    let command = |system: System| {
        let packages: Vec<_> = missing.iter().map(|server| server.packages()[system as usize]).collect();
        system.command(&packages.join(" "), rights)
    };
    let commands = match system {
        Some(system) => format!("  {}", command(system)),
        None => System::ALL.map(|system| format!("  {:<16}{}", system.title(), command(system))).join("\n"),
    };
    let variables = missing.iter().map(|server| server.variable()).collect::<Vec<_>>().join(" and ");
    format!(
        "Install what is missing:\n\n{commands}\n\nor start Docker, or set {variables} to the URL of a running server"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Wanted; 2] = [Wanted::Postgres, Wanted::RabbitMq];

    #[test]
    fn the_advice_names_only_what_is_missing() {
        let advice = help(&[Wanted::RabbitMq], None, Rights::Sudo);
        assert!(advice.contains("apt-get install -y rabbitmq-server\n"), "{advice}");
        assert!(advice.contains("brew install rabbitmq\n") && advice.contains("set AMQP_URL to"), "{advice}");
        assert!(!advice.contains("postgres"), "{advice}");
        let advice = help(&BOTH, None, Rights::Sudo);
        assert!(advice.contains("dnf install -y postgresql-server rabbitmq-server\n"), "{advice}");
        assert!(advice.contains("DATABASE_URL and AMQP_URL"), "{advice}");
    }

    #[test]
    fn the_advice_for_a_known_system_is_one_command_that_can_be_typed_as_it_is() {
        let install = "apt-get install -y postgresql rabbitmq-server";
        let cases = [
            (Rights::Root, format!("\n  apt-get update && {install}\n")),
            (Rights::Sudo, format!("\n  sudo apt-get update && sudo {install}\n")),
            (Rights::Su, format!("\n  su - -c 'apt-get update && {install}'\n")),
        ];
        for (rights, expected) in cases {
            let advice = help(&BOTH, Some(System::Debian), rights);
            assert!(advice.contains(&expected) && !advice.contains("brew"), "{advice}");
        }
    }
}

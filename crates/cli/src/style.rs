use std::io::IsTerminal;

/// Colours for one stream: on a terminal only, and not where NO_COLOR asks for none.
#[derive(Clone, Copy)]
pub(crate) struct Style(bool);

pub(crate) fn stdout() -> Style {
    Style(std::io::stdout().is_terminal() && wanted())
}

pub(crate) fn stderr() -> Style {
    Style(std::io::stderr().is_terminal() && wanted())
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Style {
    pub(crate) fn muted(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn calm(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn near(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn critical(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

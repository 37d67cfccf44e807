//! Chat templates. A template comes out of a downloaded file: it gets a fixed amount of work and output, no files and
//! no other templates.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use chat::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::LoadError;

/// For files without a template: what most families without one were trained with.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const NAME: &str = "chat";
/// Instructions for one rendering; a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 5_000_000;
/// Bytes of one rendering: more than fits in any context.
const MOST_OUTPUT: usize = 16 << 20;

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`, or ChatML where there is none.
    ///
    /// # Errors
    /// When the source is no valid template.
    pub(crate) fn new(source: Option<String>, bos: &str, eos: &str) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As `transformers` sets it, which templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
        environment.add_template_owned(NAME, source.unwrap_or_else(|| CHATML.to_owned())).map_err(failed)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt that asks for the next answer.
    ///
    /// # Errors
    /// When the template refuses the messages, fails, or does more than it may.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, LoadError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.text.expose() })
            .collect();
        let variables = context! {
            messages,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
        };
        let mut output = Bounded { bytes: Vec::new() };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render_captured_to(variables, &mut output).map_err(failed)?;
        String::from_utf8(output.bytes).map_err(|error| LoadError::Template(error.to_string()))
    }
}

fn failed(error: Error) -> LoadError {
    // The alternate form would quote the source and the variables, which are somebody's messages.
    LoadError::Template(match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    })
}

struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + part.len() > MOST_OUTPUT {
            return Err(io::Error::other("the rendered prompt is too long"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The date in UTC, by the fields that templates use: a model is told the day, not the time zone.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text.push_str(&format!("{year:04}")),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('e') => text.push_str(&format!("{day:2}")),
            Some('B') => text.push_str(month_name),
            Some('b' | 'h') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(day_name),
            Some('a') => text.push_str(&day_name[..3]),
            Some('H') => text.push_str(&format!("{hour:02}")),
            Some('I') => text.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => text.push_str(&format!("{minute:02}")),
            Some('S') => text.push_str(&format!("{second:02}")),
            Some('F') => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => text.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') | None => text.push('%'),
            Some(other) => text.extend(['%', other]),
        }
    }
    text
}

/// Howard Hinnant's `civil_from_days`, <https://howardhinnant.github.io/date_algorithms.html>, for days since 1970.
const fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chat::Role;

    use super::*;

    fn render(source: &str) -> Result<String, LoadError> {
        let messages = [Message::new(Role::System, "Be brief."), Message::new(Role::User, " Hi ")];
        ChatTemplate::new(Some(source.to_owned()), "<s>", "</s>")?.render(&messages)
    }

    #[test]
    fn a_file_without_a_template_gets_chatml() {
        let template = ChatTemplate::new(None, "", "").unwrap();
        assert_eq!(
            template.render(&[Message::new(Role::User, "Hi")]).unwrap(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn templates_may_use_pythons_methods_and_the_usual_functions() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m['role'].upper() }}:{{ m.content.strip() }};{% endfor %}\
                      {{ [1, 'a'] | tojson }}{% if strftime_now('%Y') | length == 4 %}ok{% endif %}";
        assert_eq!(render(source).unwrap(), "<s>SYSTEM:Be brief.;USER:Hi;[1, \"a\"]ok");
    }

    #[test]
    fn a_template_can_refuse_messages() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_template_cannot_run_on_or_fill_the_memory() {
        assert!(render("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}").is_err());
        assert!(render("{{ 'x' * 100000000000 }}").is_err());
        assert!(
            render("{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000 }}{% endfor %}").is_err()
        );
    }

    #[test]
    fn an_error_does_not_quote_the_messages() {
        let error = render("{{ messages[1].content.no_such_method() }}").unwrap_err();
        assert!(!error.to_string().contains("Hi"), "{error}");
    }

    #[test]
    fn dates_are_written_out() {
        let leap_day = UNIX_EPOCH + Duration::from_secs(1_709_210_096);
        assert_eq!(strftime("%d %b %Y, %A %H:%M:%S %q%%", leap_day), "29 Feb 2024, Thursday 12:34:56 %q%");
        assert_eq!(strftime("%F", UNIX_EPOCH), "1970-01-01");
    }
}

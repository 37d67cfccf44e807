//! Chat templates. A template comes out of a downloaded file: it gets a fixed amount of work and output, no files and
//! no other templates.

mod conversation;
mod dates;
mod python;
mod seal;

use std::io;
use std::thread;
use std::time::SystemTime;

use chat::ChatRequest;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, Value};

use crate::LoadError;
use seal::Seal;

/// For files without a template: what most families without one were trained with.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const NAME: &str = "chat";
/// Instructions for one rendering, each worth 64 bytes of text; a conversation of a thousand messages takes some ten
/// thousand.
const FUEL: u64 = 1_000_000;
/// Stack of the thread that renders. Values are written and dropped by recursion, some 600 bytes for each list in a list,
/// and the fuel is enough to put hundreds of thousands of lists into each other; pages that aren't touched cost nothing.
const STACK: usize = 512 << 20;
/// Characters of a line: minijinja 3.1 counts columns in 16 bits and, where overflow is checked, panics at an error behind
/// the last one.
const LONGEST_LINE: usize = u16::MAX as usize - 1;
/// Bytes of one rendering: more than fits in any context.
const MOST_OUTPUT: usize = 16 << 20;

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    seal: Seal,
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Breaks names of tokens in text that people wrote; not part of the text.
    pub(crate) seal: char,
}

impl ChatTemplate {
    /// Compiles `source`, or ChatML where there is none. `marks` are the names of the tokens that steer the model.
    ///
    /// # Errors
    /// When the source is no valid template.
    pub(crate) fn new<'a>(
        source: Option<String>,
        bos: &str,
        eos: &str,
        marks: impl Iterator<Item = &'a str>,
    ) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As `transformers` sets it, which templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        python::install(&mut environment);
        let source = source.unwrap_or_else(|| CHATML.to_owned());
        if source.split('\n').any(|line| line.chars().count() > LONGEST_LINE) {
            let why = format!("a line of it has more than {LONGEST_LINE} characters; break it into shorter ones");
            return Err(LoadError::Template(why));
        }
        environment.add_template_owned(NAME, without_generation_blocks(&source)).map_err(failed)?;
        Ok(Self { environment, source, bos: bos.to_owned(), eos: eos.to_owned(), seal: Seal::new(marks)? })
    }

    /// The template as the file has it.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The prompt that asks for the next answer, or for the rest of the last message where that is the assistant's.
    ///
    /// # Errors
    /// When the template refuses the messages, fails, or does more than it may.
    pub(crate) fn render(&self, request: &ChatRequest) -> Result<Rendered, LoadError> {
        self.render_at(request, SystemTime::now())
    }

    fn render_at(&self, request: &ChatRequest, now: SystemTime) -> Result<Rendered, LoadError> {
        let mut texts = conversation::texts(request);
        texts.extend([self.source.as_str(), self.bos.as_str(), self.eos.as_str()]);
        let sealer = self.seal.sealer(&texts)?;
        let mut variables = conversation::variables(request, &self.source, &|text| sealer.seal(text));
        variables.insert("bos_token".into(), self.bos.as_str().into());
        variables.insert("eos_token".into(), self.eos.as_str().into());
        let strftime = Value::from_function(move |format: String| dates::strftime(&format, now));
        let variables = variables.into_iter().map(|(name, value)| (name, value_of(value)));
        let variables = Value::from_pairs(variables.chain([("strftime_now".to_owned(), strftime)]));
        let mut text = thread::scope(|scope| {
            let refused = |why: &dyn ToString| LoadError::Template(why.to_string());
            let renderer = thread::Builder::new().name("engine-template".to_owned()).stack_size(STACK);
            let rendering = renderer.spawn_scoped(scope, || self.write(variables)).map_err(|error| refused(&error))?;
            rendering.join().map_err(|_| refused(&"rendering it failed"))?
        })?;
        if conversation::is_continued(request) {
            conversation::cut_at_end(&mut text)?;
        }
        Ok(Rendered { text, seal: sealer.character() })
    }

    fn write(&self, variables: Value) -> Result<String, LoadError> {
        let mut output = Bounded { bytes: Vec::new() };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render_captured_to(variables, &mut output).map_err(failed)?;
        String::from_utf8(output.bytes).map_err(|error| LoadError::Template(error.to_string()))
    }
}

/// `{% generation %}` only marks what a model is trained on.
fn without_generation_blocks(source: &str) -> String {
    if !source.contains("generation") {
        return source.to_owned();
    }
    let mut text = source.to_owned();
    for (open, close) in [("{%", "%}"), ("{%-", "-%}"), ("{%-", "%}"), ("{%", "-%}")] {
        text = text.replace(&format!("{open} generation {close}"), &format!("{open} if true {close}"));
        text = text.replace(&format!("{open} endgeneration {close}"), &format!("{open} endif {close}"));
    }
    text
}

fn value_of(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => value.into(),
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => items.into_iter().map(value_of).collect(),
        serde_json::Value::Object(members) => {
            Value::from_pairs(members.into_iter().map(|(key, value)| (key, value_of(value))))
        }
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().into(),
        },
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

#[cfg(test)]
mod tests;

//! MSL to C++: what plain C++ lacks is rewritten, and every kernel is registered under its host name.
//!
//! The rewriter works on preprocessed tokens, not on a syntax tree; what it can't read it refuses.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::tokens::{Kind, Token, Tokens, attribute_argument, flat};

/// Attributes that name a property of the thread (MSL 5.2.3.6), and their letters in `shim/bind.h`.
const PROPERTIES: &[(&str, char)] = &[
    ("thread_position_in_grid", 'G'),
    ("thread_position_in_threadgroup", 'T'),
    ("threadgroup_position_in_grid", 'g'),
    ("threads_per_threadgroup", 's'),
    ("dispatch_threads_per_threadgroup", 's'),
    ("threadgroups_per_grid", 'n'),
    ("threads_per_grid", 'N'),
    ("thread_index_in_threadgroup", 'i'),
    ("thread_index_in_simdgroup", 'l'),
    ("simdgroup_index_in_threadgroup", 'q'),
    ("simdgroups_per_threadgroup", 'Q'),
    ("threads_per_simdgroup", 'w'),
    ("thread_execution_width", 'w'),
];

/// Types to which a cast in brackets already means the same in C++. `half` and `bfloat` don't convert to each other.
const SCALARS: &[&str] = &[
    "void", "bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "size_t", "uint8_t",
    "int8_t", "uint16_t", "int16_t", "uint32_t", "int32_t", "uint64_t", "int64_t", "unsigned",
];

const SPACES: &[&str] = &["device", "threadgroup", "thread", "constant"];

/// C++ for clang with `shim/metal.h`.
///
/// # Errors
/// A declaration that the rewriter can't read, in words.
pub(crate) fn translate(preprocessed: &str) -> Result<String, String> {
    let mut tokens = Tokens::lex(preprocessed);
    drop_loop_pragmas(&mut tokens);
    declare_constants(&mut tokens);
    merge_member_functions(&mut tokens);
    merge_overloads(&mut tokens);
    rewrite_casts(&mut tokens);
    let kernels = take_kernels(&mut tokens)?;
    let allocated = |name: &str, of_type: &str| {
        let arguments = format!("&{name}_key, sizeof({of_type}), alignof({of_type})");
        format!("*({of_type} *)metal_emulator_threadgroup_variable({arguments})")
    };
    declare_threadgroup_variables(&mut tokens, allocated, "")?;
    Ok(format!("#include \"metal.h\"\n{}\n# 1 \"kernels\"\n{}", tokens.text(), kernels.registrations()?))
}

/// C++ that keeps its address spaces: for clang's front end only.
///
/// # Errors
/// As [`translate`].
pub(crate) fn translate_with_spaces(preprocessed: &str) -> Result<String, String> {
    let mut tokens = Tokens::lex(preprocessed);
    drop_loop_pragmas(&mut tokens);
    declare_constants(&mut tokens);
    merge_member_functions(&mut tokens);
    rewrite_casts(&mut tokens);
    take_kernels(&mut tokens)?;
    declare_threadgroup_variables(
        &mut tokens,
        |_, of_type| format!("*(threadgroup {of_type} *)nullptr"),
        "threadgroup ",
    )?;
    // The shim's packed vectors are structs, which clang doesn't copy out of other address spaces.
    let types = ["float", "half", "bfloat", "char", "uchar", "short", "ushort", "int", "uint"];
    let vectors = types.iter().flat_map(|of| [2, 3, 4].map(|n| format!("#define packed_{of}{n} {of}{n}\n")));
    Ok(format!("#include \"metal.h\"\n{}{}", vectors.collect::<String>(), tokens.text()))
}

fn drop_loop_pragmas(tokens: &mut Tokens) {
    for at in 0..tokens.len() {
        let token = &mut tokens[at];
        if token.kind == Kind::Directive && token.text.starts_with("#pragma") && token.text.contains("unroll") {
            token.text = "";
        }
    }
}

/// `constant T name [[function_constant(1)]];` becomes a registered variable, and a constant computed from one an object
/// that computes its value at each use.
fn declare_constants(tokens: &mut Tokens) {
    let mut known: HashSet<&str> = HashSet::from(["is_function_constant_defined"]);
    // Whether each open brace is a namespace's.
    let mut braces: Vec<bool> = Vec::new();
    let mut brackets = 0;
    for at in 0..tokens.len() {
        if tokens[at].is("{") {
            let name = tokens.previous(at);
            let is_namespace = name.is_some_and(|name| {
                tokens[name].is_word("namespace")
                    || tokens.previous(name).is_some_and(|keyword| tokens[keyword].is_word("namespace"))
            });
            braces.push(is_namespace);
        } else if tokens[at].is("}") {
            braces.pop();
        }
        brackets += i32::from(tokens[at].is("(")) - i32::from(tokens[at].is(")"));
        if !tokens[at].is_word("constant") || braces.contains(&false) || brackets > 0 {
            continue;
        }
        let head = tokens.find(at, &[";", "(", "{"]);
        let assign = (at..head).find(|&i| tokens[i].is("="));
        if head == tokens.len() || !(tokens[head].is(";") || assign.is_some()) {
            continue;
        }
        let end = tokens.find(at, &[";"]);
        let declared = tokens.slice(at + 1..assign.unwrap_or(end));
        let words: Vec<&str> = declared
            .iter()
            .filter(|token| token.kind == Kind::Word && token.text != "constexpr")
            .map(|t| t.text)
            .collect();
        let Some((&name, of_type)) = words.split_last() else { continue };
        let of_type = of_type.join(" ");
        let index = declared
            .iter()
            .filter(|token| token.kind == Kind::Attribute)
            .find_map(|token| attribute_argument(token.text, "function_constant"));
        let replacement = if let Some(index) = index {
            format!("EMULATOR_CONSTANT({of_type}, {name}, {index})")
        } else if let Some(assign) = assign
            && tokens.slice(assign..end).iter().any(|token| token.kind == Kind::Word && known.contains(token.text))
        {
            let value = flat(tokens.slice(assign + 1..end));
            format!("static struct {{ operator {of_type}() const {{ return {value}; }} }} {name};")
        } else {
            continue;
        };
        known.insert(name);
        tokens.blank(at..end + 1);
        tokens[at].before = replacement;
    }
}

/// Of member functions that differ in the address space of `this`, the one for `thread` stays.
fn merge_member_functions(tokens: &mut Tokens) {
    for at in 0..tokens.len() {
        if tokens[at].kind != Kind::Word || !SPACES.contains(&tokens[at].text) {
            continue;
        }
        let Some(mut close) = tokens.previous(at) else { continue };
        if tokens[close].is_word("const") {
            match tokens.previous(close) {
                Some(before) if tokens[before].is(")") => close = before,
                _ => continue,
            }
        }
        let next = tokens.next(at);
        let is_member =
            tokens[close].is(")") && tokens.get(next).is_some_and(|t| ["=", "{", ";", ":"].iter().any(|op| t.is(op)));
        if !is_member {
            continue;
        }
        if tokens[at].text == "thread" {
            tokens[at].blank();
            continue;
        }
        let start = tokens.statement_start(close);
        let mut end = tokens.find(next, &[";", "{"]);
        if end < tokens.len() && tokens[end].is("{") {
            end = tokens.close(end);
        }
        tokens.blank(start..end + 1);
    }
}

/// Of functions and specializations that differ in address spaces only, the first stays.
fn merge_overloads(tokens: &mut Tokens) {
    let mut seen: HashSet<String> = HashSet::new();
    let (mut at, mut start) = (0, 0);
    while at < tokens.len() {
        if tokens[at].is(";") {
            start = at + 1;
        } else if tokens[at].is("{") {
            let end = tokens.close(at);
            let head = tokens.slice(start..at);
            let key = signature(head);
            let first = key.split(' ').next().unwrap_or_default();
            let is_function = (first == "template" || key.split(' ').any(|word| word == "(")) && first != "typedef";
            if first == "namespace" {
                at += 1;
                start = at;
                continue;
            }
            if is_function && seen.contains(&key) {
                let next = tokens.next(end);
                let with_semicolon = tokens.get(next).is_some_and(|token| token.is(";"));
                tokens.blank(start..if with_semicolon { next } else { end } + 1);
            }
            seen.insert(key);
            at = end;
            start = at + 1;
        }
        at += 1;
    }
}

fn signature(head: &[Token]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for token in head {
        if matches!(token.kind, Kind::Space | Kind::Directive | Kind::Attribute)
            || matches!(token.text, "device" | "threadgroup" | "thread")
        {
            continue;
        }
        let word = if token.text == "constant" { "const" } else { token.text };
        if word != "const" || words.last() != Some(&"const") {
            words.push(word);
        }
    }
    words.join(" ")
}

/// `(float4) x` becomes `emulator::c_cast<float4>(x)`.
fn rewrite_casts(tokens: &mut Tokens) {
    for open in 0..tokens.len() {
        if !tokens[open].is("(") {
            continue;
        }
        let of_type = tokens.next(open);
        let close = tokens.next(of_type);
        let operand = tokens.next(close);
        if operand >= tokens.len()
            || tokens[of_type].kind != Kind::Word
            || !tokens[close].is(")")
            || SCALARS.contains(&tokens[of_type].text)
            || !(matches!(tokens[operand].kind, Kind::Word | Kind::Literal) || tokens[operand].is("("))
            || SPACES.contains(&tokens[operand].text)
            || tokens[operand].text == "const"
        {
            continue;
        }
        // After a name or a closing bracket these are a call's brackets.
        let before = tokens.previous(open).map(|before| &tokens[before]);
        if before.is_some_and(|token| {
            (token.kind == Kind::Word && token.text != "return") || [")", "]", ">"].iter().any(|op| token.is(op))
        }) {
            continue;
        }
        let end = primary_end(tokens, operand);
        let cast = format!("emulator::c_cast<{}>(", tokens[of_type].text);
        tokens[end].after.push(')');
        tokens.blank(open..close + 1);
        tokens[open].before = cast;
    }
}

/// The last token of the primary expression with its postfixes that starts at `start`.
fn primary_end(tokens: &Tokens, start: usize) -> usize {
    let mut end = if tokens[start].is("(") { tokens.close(start) } else { start };
    loop {
        let next = tokens.next(end);
        match tokens.get(next) {
            Some(token) if token.is("[") || token.is("(") => end = tokens.close(next),
            Some(token) if [".", "->", "::"].iter().any(|op| token.is(op)) => end = tokens.next(next),
            _ => return end,
        }
    }
}

/// A parameter of a kernel: its letter, its index, and the function constant that switches it on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parameter {
    kind: char,
    index: u32,
    condition: Option<String>,
}

#[derive(Debug, Default)]
struct Kernels {
    parameters: HashMap<String, Vec<Parameter>>,
    /// Expression of the host name, the C++ function, and the name under which its parameters are known.
    entries: Vec<(String, String, String)>,
}

impl Kernels {
    fn registrations(&self) -> Result<String, String> {
        let mut text = String::new();
        let mut names: Vec<_> = self.parameters.keys().collect();
        names.sort();
        for name in names {
            let described = self.parameters[name].iter().map(|Parameter { kind, index, condition }| {
                let is_used = condition
                    .as_ref()
                    .map_or("nullptr".to_owned(), |condition| format!("+[]() -> bool {{ return {condition}; }}"));
                format!("{{'{kind}', {index}, {is_used}}}")
            });
            let described = described.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "static const emulator::Parameter emulator_parameters_{name}[] = {{{described}}};");
        }
        for (host, function, name) in &self.entries {
            if !self.parameters.contains_key(name) {
                return Err(format!("kernel {host}: no definition of `{name}`"));
            }
            let _ = writeln!(text, "EMULATOR_KERNEL(emulator_parameters_{name}, {host}, {function})");
        }
        Ok(text)
    }
}

/// Kernel definitions, and the explicit instantiations that give kernel templates their host names.
fn take_kernels(tokens: &mut Tokens) -> Result<Kernels, String> {
    let mut kernels = Kernels::default();
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        let is_kernel = token.is_word("kernel")
            || (token.kind == Kind::Attribute && (token.text == "kernel" || token.text.starts_with("kernel,")));
        if token.is_word("template") && tokens.get(tokens.next(at)).is_some_and(|next| !next.is("<")) {
            let end = tokens.find(at, &[";"]);
            take_instantiation(tokens, at, end, &mut kernels);
            at = end;
        } else if is_kernel {
            take_definition(tokens, at, &mut kernels)?;
        }
        at += 1;
    }
    Ok(kernels)
}

fn take_instantiation(tokens: &mut Tokens, start: usize, end: usize, kernels: &mut Kernels) {
    let host = host_name(tokens.slice(start..end));
    for at in start..end {
        if tokens[at].is_word("kernel") {
            tokens[at].blank();
        }
    }
    let Some(host) = host else { return };
    let declared = flat(tokens.slice(start..end));
    // `template void f<int>(…)`, or `template decltype(f<int>) f<int>`.
    let entity = match declared.strip_prefix("template decltype") {
        Some(rest) => after_brackets(rest).to_owned(),
        None => declared.splitn(3, ' ').nth(2).unwrap_or_default().to_owned(),
    };
    let entity = without_parameters(entity.trim()).trim().to_owned();
    let name = entity.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    kernels.entries.push((host, entity, name));
}

fn take_definition(tokens: &mut Tokens, at: usize, kernels: &mut Kernels) -> Result<(), String> {
    let open = tokens.find(at, &["("]);
    if open == tokens.len() {
        return Err("a kernel without parameters at the end of the file".into());
    }
    let close = tokens.close(open);
    let name = tokens.previous(open).map_or("", |name| tokens[name].text).to_owned();
    let parameters = parameters(tokens.slice(open + 1..close));
    let known = kernels.parameters.entry(name.clone()).or_insert_with(|| parameters.clone());
    if *known != parameters {
        return Err(format!("kernel {name} has two lists of parameters"));
    }
    let start = tokens.statement_start(at);
    let head = tokens.slice(start..open);
    let is_template = head.iter().any(|token| token.is_word("template"));
    let is_definition = tokens.get(tokens.next(close)).is_some_and(|next| next.is("{"));
    if is_definition && !is_template {
        let host = host_name(head).unwrap_or_else(|| format!("\"{name}\""));
        kernels.entries.push((host, name.clone(), name));
    }
    if tokens[at].kind == Kind::Word {
        tokens[at].blank();
    }
    Ok(())
}

fn host_name(tokens: &[Token]) -> Option<String> {
    let attributes = tokens.iter().filter(|token| token.kind == Kind::Attribute);
    attributes.filter_map(|token| attribute_argument(token.text, "host_name")).next().map(str::to_owned)
}

/// What follows the bracket that opens `text`.
fn after_brackets(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if c == ')' && depth == 0 {
            return &text[at + 1..];
        }
    }
    ""
}

/// `f<int>(int *)` without the brackets at the end.
fn without_parameters(entity: &str) -> &str {
    let mut depth = 0;
    for (at, c) in entity.char_indices() {
        depth += i32::from(c == '<') - i32::from(c == '>');
        if c == '(' && depth == 0 {
            return &entity[..at];
        }
    }
    entity
}

/// Parameters without an index take the next free one (MSL 5.2.1).
fn parameters(tokens: &[Token]) -> Vec<Parameter> {
    let (mut next_buffer, mut next_threadgroup) = (0, 0);
    let describe = |parameter: &[Token]| {
        let attributes: Vec<&str> = parameter.iter().filter(|t| t.kind == Kind::Attribute).map(|t| t.text).collect();
        let argument = |name| attributes.iter().find_map(|attribute| attribute_argument(attribute, name));
        let index = |name| argument(name).and_then(|index| index.parse::<u32>().ok());
        let condition = argument("function_constant").map(str::to_owned);
        let property = attributes
            .iter()
            .flat_map(|attribute| attribute.split(','))
            .find_map(|word| PROPERTIES.iter().find(|(name, _)| *name == word.trim()));
        if let Some((_, letter)) = property {
            return Parameter { kind: *letter, index: 0, condition: None };
        }
        if index("threadgroup").is_some() || parameter.iter().any(|token| token.is_word("threadgroup")) {
            let index = index("threadgroup").unwrap_or(next_threadgroup);
            next_threadgroup = index + 1;
            return Parameter { kind: 't', index, condition };
        }
        let index = index("buffer").unwrap_or(next_buffer);
        next_buffer = index + 1;
        Parameter { kind: 'b', index, condition }
    };
    split_at_commas(tokens).into_iter().map(describe).collect()
}

fn split_at_commas<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind == Kind::Operator) {
        match token.text {
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[start..]);
    parts.retain(|part| !flat(part).is_empty());
    parts
}

/// `threadgroup float sums[32];` in a function becomes a reference to what `value` makes of its name and type.
fn declare_threadgroup_variables(
    tokens: &mut Tokens,
    value: impl Fn(&str, &str) -> String,
    space: &str,
) -> Result<(), String> {
    for at in threadgroup_variables(tokens)? {
        let end = tokens.find(at, &[";"]);
        let dimensions = tokens.find(at, &["["]).min(end);
        let name = (at + 1..dimensions).rev().find(|&i| tokens[i].kind == Kind::Word).unwrap_or(at + 1);
        let (element, sizes) = (flat(tokens.slice(at + 1..name)), flat(tokens.slice(dimensions..end)));
        let name = tokens[name].text;
        let of_type = format!("{name}_type");
        let value = value(name, &of_type);
        let declared =
            format!("typedef {element} {of_type} {sizes}; static char {name}_key; {space}{of_type} &{name} = {value};");
        tokens.blank(at..end + 1);
        tokens[at].before = declared;
    }
    Ok(())
}

/// Where a variable in threadgroup memory is declared, which is not a pointer or a reference into it.
fn threadgroup_variables(tokens: &Tokens) -> Result<Vec<usize>, String> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let starts_statement = |before: usize| [";", "{", "}", ":"].iter().any(|op| tokens[before].is(op));
        if !tokens[at].is_word("threadgroup") || !tokens.previous(at).is_none_or(starts_statement) {
            continue;
        }
        let mut end = at + 1;
        while end < tokens.len() && ![";", "(", ")", "="].iter().any(|op| tokens[end].is(op)) {
            end = if tokens[end].is("[") { tokens.close(end) + 1 } else { end + 1 };
        }
        let Some(last) = tokens.get(end) else { continue };
        let dimensions = tokens.find(at, &["["]).min(end);
        let has = |operators: &[&str]| tokens.slice(at..dimensions).iter().any(|t| operators.iter().any(|op| t.is(op)));
        if has(&["*", "&"]) || last.is("(") || last.is(")") {
            continue;
        }
        if !last.is(";") || has(&[","]) {
            let end = (end + 8).min(tokens.len());
            return Err(format!("cannot read this declaration: {}", flat(tokens.slice(at..end))));
        }
        found.push(at);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(msl: &str, expected: &str) {
        let text = translate(msl).unwrap();
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains(expected), "{squeezed}\nlacks\n{expected}");
    }

    #[test]
    fn kernels_are_registered_with_their_parameters() {
        check(
            "kernel void f(device float *x, constant uint &n [[buffer(3)]], threadgroup float *s [[threadgroup(1)]],\n\
             uint i [[thread_position_in_grid]]) { }",
            "emulator_parameters_f[] = {{'b', 0, nullptr}, {'b', 3, nullptr}, {'t', 1, nullptr}, {'G', 0, nullptr}}; \
             EMULATOR_KERNEL(emulator_parameters_f, \"f\", f)",
        );
    }

    #[test]
    fn instantiations_are_registered_by_host_name() {
        let definition = "template <typename T, int N> [[kernel]] void f(device T *x [[buffer(0)]]) { }\n";
        for instance in ["void f<half, 4>(device half *);", "decltype(f<half, 4>) f<half, 4>;"] {
            let instance = instance
                .strip_prefix("void")
                .map_or(format!("template [[host_name(\"f_h4\")]] [[kernel]] {instance}"), |rest| {
                    format!("template [[host_name(\"f_h4\")]] kernel void{rest}")
                });
            check(&format!("{definition}{instance}"), "EMULATOR_KERNEL(emulator_parameters_f, \"f_h4\", f<half, 4>)");
        }
    }

    #[test]
    fn function_constants_and_what_derives_from_them() {
        check(
            "constant bool has_mask [[function_constant(300)]];\nconstant bool is_short = !has_mask;",
            "EMULATOR_CONSTANT(bool, has_mask, 300) static struct { operator bool() const { return !has_mask; } } is_short;",
        );
    }

    #[test]
    fn casts_to_vectors_are_calls() {
        check(
            "void f() { x = (float4) p[i].xyz * (half)(y); }",
            "emulator::c_cast<float4>( p[i].xyz) * emulator::c_cast<half>( (y))",
        );
    }

    #[test]
    fn threadgroup_variables_are_allocated() {
        check("void f() { threadgroup float a[4][N * (2)]; }", "typedef float a_type [4][N * (2)];");
        assert!(translate("void f() { threadgroup float a, b; }").is_err());
    }

    #[test]
    fn lines_keep_their_numbers() {
        let msl = "constant int n [[function_constant(0)]];\nvoid f(\n) {\nthreadgroup int a\n[4];\nint last;\n}";
        let line = |text: &str, word| text.lines().position(|line| line.contains(word));
        let text = translate(msl).unwrap();
        assert_eq!(line(&text, "int last").unwrap(), line(msl, "int last").unwrap() + 1);
    }
}

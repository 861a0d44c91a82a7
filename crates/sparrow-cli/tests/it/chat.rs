//! `sparrow chat`, and `sparrow generate --chat`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use serde_json::{Value, json};

use crate::command::{demo, fail, refused, sparrow, stderr, stdout, succeed};

/// Everything that was said, a line each, after the token that the demo model begins with.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}";

/// A folder with that template.
struct Place(tempfile::TempDir);

impl Place {
    fn new(template: &str) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.template(), template).unwrap();
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn template(&self) -> PathBuf {
        self.file("talk.jinja")
    }

    fn start(&self, args: &[&str]) -> Child {
        let template = self.template();
        let mut command = sparrow(&[&["chat", "--chat-template", template.to_str().unwrap()], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A chat in which these lines are said.
    fn chat(&self, args: &[&str], lines: &str) -> Output {
        let mut child = self.start(args);
        // One that refuses to start reads nothing.
        child.stdin.take().unwrap().write_all(lines.as_bytes()).ok();
        child.wait_with_output().unwrap()
    }
}

/// What the demo model says after a text.
fn continued(text: &str, n: &str) -> String {
    succeed(&["generate", "-p", text, "-n", n])
}

#[test]
fn a_conversation_is_its_text_continued() {
    let place = Place::new(TEMPLATE);
    let output = place.chat(&["-n", "12"], "Once upon a time\r\n\nThe dog was happy.\nThe end");
    assert!(output.status.success(), "{}", stderr(&output));
    let mut text = String::new();
    let mut expected = String::new();
    for message in ["Once upon a time", "The dog was happy.", "The end"] {
        text += &format!("{message}\n");
        let answer = continued(&text, "12");
        expected += &answer;
        text += &answer;
    }
    assert_eq!(stdout(&output), expected);
    // What was computed for one answer is not computed again for the next.
    let notes = stderr(&output);
    let computed = |line: &str| -> (usize, usize) {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[1].parse().unwrap(), words[3].parse().unwrap())
    };
    let counts: Vec<(usize, usize)> = notes.lines().map(computed).collect();
    assert!(counts.len() == 3 && counts[0].0 == counts[0].1, "{notes}");
    assert!(counts[1..].iter().all(|(new, all)| new < all && *new < 12), "{notes}");
    for part in ["tok/s", "100.0 % active", "[dense: ", "stopped at --max-new-tokens 12"] {
        assert!(notes.contains(part), "{notes:?} does not say {part:?}");
    }
}

#[test]
fn generate_answers_messages() {
    let place = Place::new(TEMPLATE);
    let template = place.template();
    let answer = succeed(&["generate", "--chat-template", template.to_str().unwrap(), "-p", "The dog", "-n", "9"]);
    assert_eq!(answer, continued("The dog\n", "9"));
    assert_eq!(stdout(&place.chat(&["-n", "9"], "The dog\n")), answer);
    let message = fail(1, &["generate", "--chat", "-p", "x"], &["has no chat template", "--chat-template FILE"]);
    assert!(message.contains("assets/demo"), "{message}");
    fail(1, &["chat"], &["has no chat template", "sparrow generate"]);
    fail(1, &["chat", "--chat-template", "/nonexistent.jinja"], &["/nonexistent.jinja: "]);
}

#[test]
fn a_model_brings_its_template_and_its_sampling() {
    let place = Place::new("");
    let model = place.file("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo().join(name), model.join(name)).unwrap();
    }
    let write = |name: &str, value: Value| std::fs::write(model.join(name), value.to_string()).unwrap();
    write("tokenizer_config.json", json!({ "bos_token": "<|endoftext|>", "chat_template": TEMPLATE }));
    write("generation_config.json", json!({ "do_sample": true, "temperature": 3.0 }));
    let chat = |more: &[&str]| {
        let mut command = sparrow(&[&["chat", "-m", model.to_str().unwrap(), "-n", "20"], more].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"Lily\n").unwrap();
        stdout(&child.wait_with_output().unwrap())
    };
    let greedy = continued("Lily\n", "20");
    assert_eq!(chat(&["--temperature", "0"]), greedy);
    assert_ne!(chat(&[]), greedy);
    assert_eq!(chat(&[]), chat(&["--temperature", "3"]));
}

#[test]
fn selectors_change_in_mid_conversation() {
    let place = Place::new(TEMPLATE);
    let lines = "Lily\n/sparse\nThe dog\n/dense\nTom\n";
    let output = place.chat(&["-n", "8"], lines);
    // The gate of a ReLU model loses nothing, so only the notes tell.
    assert_eq!(stdout(&output), stdout(&place.chat(&["-n", "8"], "Lily\nThe dog\nTom\n")));
    let notes = stderr(&output);
    let answers: Vec<&str> = notes.lines().filter(|line| line.starts_with('[')).collect();
    assert!(answers[0].starts_with("[dense: ") && answers[0].contains("100.0 % active"), "{notes}");
    assert!(answers[1].starts_with("[gate: ") && !answers[1].contains("100.0 % active"), "{notes}");
    assert!(answers[2].starts_with("[dense: ") && answers[2].contains("100.0 % active"), "{notes}");
    let asked = stderr(&place.chat(&["-n", "8", "-s", "gate"], "Lily\n"));
    assert!(asked.starts_with("[gate: "), "{asked}");
    let dense = place.chat(&["-n", "8", "-s", "dense"], "/sparse\n");
    assert!(stderr(&dense).contains("without a selector: start with --selector"), "{}", stderr(&dense));
}

#[test]
fn commands_are_obeyed_and_mistakes_survived() {
    let place = Place::new(TEMPLATE);
    let saved = place.file("talk.json");
    let lines = format!(
        "Tom\n/reset\nLily\n/save {}\n/save /nonexistent/talk.json\n/save\n/dance\n/help\n/exit\nnever said\n",
        saved.display()
    );
    let output = place.chat(&["-n", "6", "--system", "A story."], &lines);
    assert!(output.status.success(), "{}", stderr(&output));
    let answer = continued("A story.\nLily\n", "6");
    assert_eq!(stdout(&output), continued("A story.\nTom\n", "6") + &answer);
    let expected = json!([
        { "role": "system", "content": "A story." },
        { "role": "user", "content": "Lily" },
        { "role": "assistant", "content": answer.strip_suffix('\n').unwrap() },
    ]);
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&saved).unwrap()).unwrap(), expected);
    let left: Vec<_> = std::fs::read_dir(place.0.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
    for part in ["saved to", "/nonexistent/talk.json", "/save needs", "no command /dance", "/sparse", "begins anew"] {
        assert!(stderr(&output).contains(part), "{:?} does not say {part:?}", stderr(&output));
    }
}

#[test]
fn a_full_context_is_told_and_left_by_reset() {
    let place = Place::new(TEMPLATE);
    let lines = format!("{}\nLily\n/reset\nLily\n", "word ".repeat(600));
    let output = place.chat(&["-n", "6"], &lines);
    assert!(output.status.success());
    // The message that did not fit was taken back.
    assert_eq!(stdout(&output), continued("Lily\n", "6").repeat(2));
    for part in ["the context of 512 is full", "/reset begins anew"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    // An answer that fills it ends, and says why.
    let output = place.chat(&["-n", "2000", "--logit-bias", "0=-inf"], "Lily\nmore\n");
    assert!(output.status.success());
    assert!(stderr(&output).contains("the context of 512 tokens is full"), "{}", stderr(&output));
    assert!(stderr(&output).contains("the message was not answered"), "{}", stderr(&output));
}

#[test]
fn what_a_template_refuses_is_told() {
    let alternate = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('Not that.') }}{% endif %}\
                     {{ m.content }}\n{% endfor %}";
    let place = Place::new(alternate);
    let output = place.chat(&["-n", "4"], "no\nLily\n");
    assert!(output.status.success());
    assert_eq!(stdout(&output).lines().count(), 1, "{}", stdout(&output));
    let says = ["talk.jinja: the chat template, line 1 refuses the conversation: Not that."];
    assert!(stderr(&output).contains(says[0]), "{}", stderr(&output));
    // What would be refused with every message is refused at once.
    refused(&place.chat(&["--system", "no"], "Lily\n"), 1, &says);
    let broken = Place::new("{% for %}");
    refused(&broken.chat(&[], "Lily\n"), 1, &["talk.jinja: the chat template, line 1: syntax error"]);
    assert!(place.chat(&[], "").status.success());
    refused(&place.chat(&["--top-p", "0"], "Lily\n"), 1, &["top_p", "above 0"]);
}

#[test]
fn answers_end_where_turns_end() {
    let whole = continued("Lily\n", "40");
    let word = whole.split_whitespace().nth(5).unwrap();
    let template = format!(
        "{{{{ bos_token }}}}{{% for m in messages %}}{{{{ m.content }}}}\n{{% if m.role == 'assistant' %}}{word}\n{{% endif %}}{{% endfor %}}"
    );
    let place = Place::new(&template);
    let (before, _) = whole.split_once(word).unwrap();
    assert_eq!(stdout(&place.chat(&["-n", "40"], "Lily\n")), format!("{before}\n"));
}

#[cfg(unix)]
mod interrupted {
    use std::io::{BufRead, BufReader};

    use super::*;
    use sparrow_testing::tiny;

    /// A model that goes on for minutes.
    fn endless(dir: &Path) {
        tiny::write_model(dir);
        let mut config = tiny::config();
        config["max_position_embeddings"] = json!(1_000_000);
        config["eos_token_id"] = Value::Null;
        config["rope_scaling"] = Value::Null;
        tiny::write_json(&dir.join("config.json"), &config);
        tiny::write_json(&dir.join("generation_config.json"), &json!({}));
    }

    fn interrupt(child: &Child) {
        let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    }

    #[test]
    fn an_answer_stops_and_the_chat_goes_on() {
        let place = Place::new("{% for m in messages %}{{ m.content }}\n{% endfor %}");
        let (model, saved) = (place.file("model"), place.file("talk.json"));
        std::fs::create_dir(&model).unwrap();
        endless(&model);
        let mut child = place.start(&["-m", model.to_str().unwrap(), "-n", "900000"]);
        let mut input = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        input.write_all(b"w3\n").unwrap();
        output.read_exact(&mut [0; 8]).unwrap();
        // What is not read would hold it up.
        let rest = std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        interrupt(&child);
        let note = notes.find(|note| note.starts_with('[')).unwrap();
        assert!(note.contains("cancelled"), "{note}");
        input.write_all(format!("/save {}\n", saved.display()).as_bytes()).unwrap();
        assert!(notes.next().unwrap().starts_with("saved to"));
        // Nothing runs now, and no terminal waits: it leaves.
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        rest.join().unwrap().unwrap();
        let messages: Vec<Value> = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[1]["content"].as_str().unwrap().len() >= 8);
    }
}

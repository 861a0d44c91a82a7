//! Questions with known answers: how often a model's most likely tokens are exactly the answer.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sparrow::{Error, Result, Session, Tokenizer};

/// A line of a file of questions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    prompt: String,
    answer: String,
}

/// Questions in tokens.
#[derive(Debug)]
pub struct Questions(Vec<Tokens>);

/// A prompt with its answer.
#[derive(Debug)]
struct Tokens {
    ids: Vec<u32>,
    /// Where the answer begins.
    answer: usize,
}

/// How many answers were exactly right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Answers {
    /// Questions that were asked.
    pub questions: usize,
    /// Answered by the model.
    pub right: usize,
    /// Answered by the dense one that it is compared with.
    pub dense_right: usize,
}

impl Questions {
    /// Reads JSON lines of the form `{"prompt": "2 + 2 =", "answer": " 4"}`; each question begins with `beginning`.
    ///
    /// # Errors
    /// If the file cannot be read, has no question, or a line is not one: its answer must add a token to its prompt.
    pub fn read(path: &Path, tokenizer: &Tokenizer, beginning: &[u32]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut questions = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |message: String| Error::config(path, format!("line {}: {message}", number + 1));
            let question: Question = serde_json::from_str(line)
                .map_err(|error| wrong(format!("expected {{\"prompt\": …, \"answer\": …}}: {error}")))?;
            let encode = |text: &str| Ok::<_, Error>([beginning, &tokenizer.encode(text, false)?].concat());
            let prompt = encode(&question.prompt)?;
            let ids = encode(&format!("{}{}", question.prompt, question.answer))?;
            // Where a token reaches from the prompt into the answer, it is part of the answer.
            let answer = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            if answer == 0 || answer == ids.len() {
                return Err(wrong("needs a prompt, and an answer that adds a token to it".into()));
            }
            questions.push(Tokens { ids, answer });
        }
        if questions.is_empty() {
            return Err(Error::config(path, "has no questions, one JSON object per line"));
        }
        Ok(Questions(questions))
    }

    /// Tokens of the longest question and answer.
    pub fn longest(&self) -> usize {
        self.0.iter().map(|question| question.ids.len()).max().unwrap_or(0)
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Asks both sessions, each with one sequence that has room for the longest question; `progress` is told how many are done. An
    /// answer is right if each of its tokens is the most likely one after those before: what greedy generation would write.
    ///
    /// # Errors
    /// As [`Session::prefill_each`].
    pub fn ask(&self, dense: &mut Session, sparse: &mut Session, mut progress: impl FnMut(usize)) -> Result<Answers> {
        let mut answers = Answers { questions: self.len(), ..Answers::default() };
        let mut before: &[u32] = &[];
        for (number, question) in self.0.iter().enumerate() {
            let kept = before.iter().zip(&question.ids).take_while(|(a, b)| a == b).count().min(question.answer - 1);
            answers.dense_right += usize::from(answered(dense, question, kept)?);
            answers.right += usize::from(answered(sparse, question, kept)?);
            before = &question.ids[..question.ids.len() - 1];
            progress(number + 1);
        }
        Ok(answers)
    }
}

/// Whether the session, which has the first `kept` tokens of the question already, answers it.
fn answered(session: &mut Session, question: &Tokens, kept: usize) -> Result<bool> {
    let Tokens { ids, answer } = question;
    // A sparse cache does not go back to what it was.
    let kept = if session.kv().sparsity.is_some() { 0 } else { kept };
    session.truncate(0, kept)?;
    let mut right = true;
    session.prefill_each(0, &ids[kept..ids.len() - 1], &mut (), |i, logits| {
        let next = kept + i + 1;
        right &= next < *answer || crate::eval::argmax(logits) == ids[next] as usize;
        Ok(())
    })?;
    Ok(right)
}

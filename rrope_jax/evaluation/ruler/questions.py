"""Questions on documents among others that have nothing to do with them."""

import dataclasses
import random

from rrope_jax.evaluation.ruler.sample import Materials, Sample, Scoring, Sizes, Task

_TASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
_ANSWER = " Answer:"


@dataclasses.dataclass(frozen=True)
class DocumentQuestions(Task):
    """`qa`: one question of a data set; its documents are hidden among others of the data set.

    For example:

        Answer the question based on the given documents. Only give me the answer and do not output
        any other words.

        The following are given documents.

        Document 1:
        The mill was built in 1764. [...]

        Answer the question based on the given documents. Only give me the answer and do not output
        any other words.

        Question: When was the mill built? Answer:

    Attributes:
      dataset: a key of `Materials.questions`.
    """

    dataset: str
    max_tokens: int = 32
    scoring: Scoring = "part"

    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """Numbers of documents."""
        del context
        own = materials.questions[self.dataset].questions[index].own
        return Sizes(least=len(own), shrink=10)

    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt; see `Task.write`."""
        del context
        questions, documents = materials.questions[self.dataset]
        question = questions[index]
        own, near = list(question.own), list(question.near)
        if size >= len(documents):
            shown = list((documents * -(-size // len(documents)))[:size])
        else:
            more = size - len(own)
            if more > len(near):
                known = {*own, *near}
                far = [number for number in range(len(documents)) if number not in known]
                chosen = own + near + draws.sample(far, more - len(near))
            else:
                chosen = own + draws.sample(near, more)
            shown = [documents[number] for number in chosen]
        materials.shuffle(shown)
        context_text = "\n\n".join(
            f"Document {number}:\n{document}" for number, document in enumerate(shown, start=1)
        )
        prompt = materials.prompt(_TASK.format(context=context_text, query=question.text), _ANSWER)
        return Sample(prompt, question.answers, f" {question.answers[0]}")

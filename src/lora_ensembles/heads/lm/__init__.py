"""The frozen language-model head: tables of tokens, scores of labels and of open answers, losses."""

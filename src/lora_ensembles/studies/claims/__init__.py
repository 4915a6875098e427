"""From records to contrasts and verdicts."""

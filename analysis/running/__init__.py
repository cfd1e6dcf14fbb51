"""Work through an experiment: plan, generate, trace, score; on one machine or many, from wherever it was stopped."""

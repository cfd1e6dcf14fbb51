"""Dominance, from anecdote to evidence: over all prompts of a trace, with intervals and controls.

tables       what every head gave to every target, of all images that have detections
statistics   means, differences and AUCs of many cells, with intervals over prompts
companions   ratio, evenness, mass and quantiles beside it
prediction   does it foretell a missing object? chosen on some prompts, judged on others
questions    a table per question: by outcome, by head, by method
same_word    does a word get less attention where it is missing than where it is found?
dose         does dominance cause what is missing? one edit at several strengths
pointing     are the maps about the objects?
ground_truth the same of noised drawings, whose boxes are known
figures      a figure per question
"""

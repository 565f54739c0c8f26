"""Evaluating models: ask each one the same questions once, keep its answers, judge them often.

    suites ──▶ exams ──▶ answers (models are loaded only for those the store lacks) ──▶ scores

Only `asking` needs torch, and it is imported only when an answer is missing.
"""

"""Diagnosis of an implicit layer on one batch: what is measured, and what it says."""

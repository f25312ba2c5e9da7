"""Starts, watches and resumes runs on Cloud TPUs, or as processes of this machine: python tpu/launch.py."""

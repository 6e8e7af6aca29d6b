"""What each command of `sae-steer` does: its arguments (`add_arguments`) and its work (`run`)."""

"""``python -m dsee``."""

from dsee_command import main

if __name__ == "__main__":
    main()

"""``python -m spt_deploy`` is ``spt-deploy``; ``torchrun -m spt_deploy train ...`` starts it once a process."""

from spt_deploy.cli import main

if __name__ == "__main__":
    main(prog_name="spt-deploy")

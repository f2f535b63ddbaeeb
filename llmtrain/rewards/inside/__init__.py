"""What runs inside the sandbox: scripts that need only the standard library, and nothing else of llmtrain.

`main` starts one of two processes: `solution` holds the response's code, `tester` the row's tests. They speak over
pipes, in the language of `wire`. `walls` and `seccomp` shut both in. In a jail this folder is all of llmtrain there is.
"""

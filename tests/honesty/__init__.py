"""Random problems, inputs and configurations: is each answer right, or an error of ours?"""

"""What is measured: speed, the evidence for masked pretraining, robustness."""

from maskdm.runtime.renamed import refuse_renamed

refuse_renamed(
    {
        "benchmarks.speed": "benchmarks.speed.bench",
        "benchmarks.growth": "benchmarks.speed.growth",
        "benchmarks.evaluations": "benchmarks.speed.solver_nfe",
        "benchmarks.torture": "benchmarks.robustness.torture",
        "benchmarks.pages": "tools.tables.pages",
        "benchmarks.report.page": "tools.report.page",
        "benchmarks.report.figure": "tools.report.figure",
        "benchmarks.evidence.cell": "benchmarks.evidence.train",
        "benchmarks.evidence.run": "benchmarks.evidence.matrix",
        "benchmarks.evidence.pace": "benchmarks.evidence.step_times",
    }
)

package fleet

import (
	"fmt"
	"io"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// A plan file holds one LearnedPlan a line, the longest unused first.
const (
	planFormat  = "eboot plans 1"
	maxPlanFile = 64 << 20 // standardPlans, with each byte of each path escaped, take less
)

func encodePlans(w io.Writer, plans []eboot.LearnedPlan) error {
	return encodeLines(w, lineHeader{Format: planFormat}, plans)
}

// decodePlans reads what encodePlans writes; anything else is eboot.ErrDamaged.
func decodePlans(content []byte) ([]eboot.LearnedPlan, error) {
	return decodeLines(content, planFormat, checkPlan)
}

func checkPlan(p eboot.LearnedPlan) error {
	if err := checkPlanKey(p.PlanKey); err != nil {
		return err
	}
	if len(p.Files) == 0 {
		return fmt.Errorf("has no files: %w", eboot.ErrInvalid)
	}
	for _, file := range p.Files {
		if err := standardPlans.check(file); err != nil {
			return err
		}
	}
	return nil
}

// load reads the file at path into t, which must be empty, as readLines does.
func (t *planTable) load(path string, logger hclog.Logger) error {
	plans, err := readLines(path, maxPlanFile, decodePlans, func(aside string, damage error) {
		logger.Warn("plans are damaged and forgotten: the next boot of each bundle asks for its files one by one",
			"file", path, "kept", aside, "error", damage)
	})
	t.take(plans)
	t.version = 0 // the file has it
	return err
}

// take enters plans that were read, the longest unused first.
func (t *planTable) take(plans []eboot.LearnedPlan) {
	for _, p := range plans[max(0, len(plans)-t.limits.plans):] {
		t.merge(p.PlanKey, p.Files)
	}
}

// encode writes all plans and returns the version they are of.
func (t *planTable) encode(w io.Writer) (version uint64, err error) {
	plans, version := t.all()
	return version, encodePlans(w, plans)
}

func planWriter(t *planTable, path string, logger hclog.Logger) *tableWriter {
	return &tableWriter{table: t, path: path, logger: logger, noun: "plans",
		loss: "what boots need is learned again when this server restarts"}
}

package fleet

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"unicode"

	"eboot"
)

// planLimits bound a planTable.
type planLimits struct {
	plans int
	files int   // of one plan
	bytes int64 // of one plan: the sizes of its files
	text  int   // of one plan: the lengths of its paths
}

// standardPlans allow a plan what a slave may be sent unasked. A path has some 50 bytes.
var standardPlans = planLimits{plans: 64, files: 2000, bytes: 8 << 20, text: 256 << 10}

// planTable holds the plans, the longest unused of which are forgotten whole. A plan that
// is full takes nothing more: which of its files are used cannot be told, since what is
// sent ahead is not asked for. The price: what is never needed again stays until the bundle
// is gone. It is safe for use by several goroutines.
type planTable struct {
	limits planLimits

	mu      sync.Mutex
	byKey   map[eboot.PlanKey]*plan
	uses    uint64 // so far
	version uint64 // rises with every change that the file should have
}

// plan is guarded by planTable.mu.
type plan struct {
	files  []eboot.PlanFile // in the order first learned
	byPath map[string]struct{}
	bytes  int64
	text   int
	used   uint64 // planTable.uses when it was asked for or learned last; different for each plan
}

func newPlanTable(limits planLimits) *planTable {
	return &planTable{limits: limits, byKey: map[eboot.PlanKey]*plan{}}
}

// checkPlanKey and check say what is left out: what no bundle has, what would not be
// written to the file as it is, and what alone is more than a plan may hold.
func checkPlanKey(k eboot.PlanKey) error {
	if k.Manifest.IsZero() {
		return fmt.Errorf("names no manifest: %w", eboot.ErrInvalid)
	}
	return checkPlanPath(k.Script)
}

func checkPlanPath(path string) error {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return fmt.Errorf("path %q: has a control character: %w", path[:min(len(path), 80)], eboot.ErrInvalid)
	}
	return eboot.CheckTreePath(path)
}

func (l planLimits) check(file eboot.PlanFile) error {
	if file.Size < 0 || file.Size > l.bytes {
		return fmt.Errorf("size %d: want 0 to %d: %w", file.Size, l.bytes, eboot.ErrTooLarge)
	}
	if len(file.Path) > l.text {
		return fmt.Errorf("path of %d bytes: at most %d: %w", len(file.Path), l.text, eboot.ErrTooLarge)
	}
	return checkPlanPath(file.Path)
}

// learn enters a file when there is room for it, notes that the plan was used, and reports
// whether it changed.
func (t *planTable) learn(key eboot.PlanKey, path string, size int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	if p != nil {
		t.use(p)
	} else {
		p = newPlan()
	}
	if !p.add(t.limits, eboot.PlanFile{Path: path, Size: size}) || !t.enter(key, p, true) {
		return false
	}
	t.version++
	return true
}

// merge enters those files that are not known as far as there is room for them, a new plan
// only in a free place, so that two servers with full tables do not swap them for ever. It
// returns how many it entered.
func (t *planTable) merge(key eboot.PlanKey, files []eboot.PlanFile) (entered int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	if p == nil {
		p = newPlan()
	}
	for _, file := range files {
		if p.add(t.limits, file) {
			entered++
		}
	}
	if entered == 0 || !t.enter(key, p, false) {
		return 0
	}
	t.version++
	return entered
}

func (t *planTable) use(p *plan) {
	t.uses++
	p.used = t.uses
}

// enter makes p, which has files, the plan of key, and reports whether it is. When the table
// is full a new plan takes the place of the longest unused one, or is left out.
func (t *planTable) enter(key eboot.PlanKey, p *plan, replace bool) bool {
	if t.byKey[key] == p {
		return true
	}
	if checkPlanKey(key) != nil || !replace && len(t.byKey) >= t.limits.plans {
		return false
	}
	for len(t.byKey) >= t.limits.plans {
		var oldest eboot.PlanKey
		least := uint64(math.MaxUint64)
		for k, p := range t.byKey {
			if p.used < least {
				oldest, least = k, p.used
			}
		}
		delete(t.byKey, oldest)
	}
	key.Script = strings.Clone(key.Script) // it may be part of something large
	t.byKey[key] = p
	t.use(p)
	return true
}

func newPlan() *plan { return &plan{byPath: map[string]struct{}{}} }

// add enters a file that is new, valid and has room, and reports whether it did.
func (p *plan) add(l planLimits, file eboot.PlanFile) bool {
	if _, known := p.byPath[file.Path]; known || len(p.files) >= l.files || l.check(file) != nil ||
		p.bytes+file.Size > l.bytes || p.text+len(file.Path) > l.text {
		return false
	}
	file.Path = strings.Clone(file.Path)
	p.files = append(p.files, file)
	p.byPath[file.Path] = struct{}{}
	p.bytes += file.Size
	p.text += len(file.Path)
	return true
}

// paths returns the plan of key and notes that it was used.
func (t *planTable) paths(key eboot.PlanKey) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	if p == nil {
		return nil
	}
	t.use(p)
	paths := make([]string, len(p.files))
	for i, file := range p.files {
		paths[i] = file.Path
	}
	return paths
}

// all returns the plans, longest unused first, and the version they are of.
func (t *planTable) all() ([]eboot.LearnedPlan, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := make([]eboot.PlanKey, 0, len(t.byKey))
	for key := range t.byKey {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b eboot.PlanKey) int { return cmp.Compare(t.byKey[a].used, t.byKey[b].used) })
	plans := make([]eboot.LearnedPlan, len(keys))
	for i, key := range keys {
		plans[i] = eboot.LearnedPlan{PlanKey: key, Files: slices.Clone(t.byKey[key].files)}
	}
	return plans, t.version
}

// keep drops the plans of the bundles for which wanted is false.
func (t *planTable) keep(wanted func(eboot.Digest) bool) (dropped bool) {
	manifests := map[eboot.Digest]bool{}
	t.mu.Lock()
	for key := range t.byKey {
		manifests[key.Manifest] = true
	}
	t.mu.Unlock()
	for manifest := range manifests { // without the lock: what wanted asks may take long
		manifests[manifest] = wanted(manifest)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.byKey {
		if wanted, asked := manifests[key.Manifest]; asked && !wanted {
			delete(t.byKey, key)
			dropped = true
		}
	}
	if dropped {
		t.version++
	}
	return dropped
}

func (t *planTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byKey)
}

func (t *planTable) changedSince(version uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != version
}

// Learn notes that a boot of key needed the file at path, of size bytes, and reports
// whether that was new. What is no path of a bundle, and what there is no room for in the
// plan, is left out.
func (f *Fleet) Learn(key eboot.PlanKey, path string, size int64) (entered bool) {
	if entered = f.plans.learn(key, path, size); entered {
		f.wakeRun()
	}
	return entered
}

// Plan returns the files that boots of key needed, in the order first learned; nil when
// nothing was learned.
func (f *Fleet) Plan(key eboot.PlanKey) []string { return f.plans.paths(key) }

// Plans returns all plans, the longest unused first.
func (f *Fleet) Plans() []eboot.LearnedPlan {
	plans, _ := f.plans.all()
	return plans
}

// MergePlan takes in what another server learned, behind what this one knows and as far
// as there is room, and returns how many files were new.
func (f *Fleet) MergePlan(key eboot.PlanKey, files []eboot.PlanFile) (entered int) {
	if entered = f.plans.merge(key, files); entered > 0 {
		f.wakeRun()
	}
	return entered
}

// KeepPlans drops the plans of all bundles but those that keep is true for.
func (f *Fleet) KeepPlans(keep func(manifest eboot.Digest) bool) {
	if f.plans.keep(keep) {
		f.wakeRun()
	}
}

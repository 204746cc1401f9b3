package test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// What a step does to the value of its key. Values are texts, and no text is no value.
type stepKind string

const (
	stepPut     stepKind = "put"     // the value becomes this one
	stepRemove  stepKind = "remove"  // there is no value any more; refused when there was none
	stepCreate  stepKind = "create"  // the value becomes this one and stays; refused when there is another
	stepRead    stepKind = "read"    // tells the value
	stepPresent stepKind = "present" // tells that there is a value
)

// step is what one operation does to one key. An operation that concerns several, such
// as a publish that moves a channel, is a step of each; so is a list of all entries. That
// is weaker than one step for all of them, and lets every key be checked alone.
type step struct {
	Key   string
	Kind  stepKind
	Value string
}

// heard is what the caller heard.
type heard struct {
	Unknown bool // it may have happened, or happen at any time from now on
	Refused bool
	Told    bool // Changed speaks of this key and nothing else
	Changed bool
	Value   string // of a read
	// Generation after a write; of a read that tells it (a channel), the one in which
	// the value came; 0: not told.
	Generation uint64
}

// register is the state of one key.
type register struct {
	Value      string
	Generation uint64 // when the value came; the least it can have been when Guessed
	Guessed    bool
}

// registerModel is one key of the replicated state. Generations rise with every change,
// of whatever key, so those of one key rise too.
var registerModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(register).after(input.(step), output.(heard))
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v: %+v", input.(step), output.(heard))
	},
}

// after returns the next state, and whether the step may have had that outcome.
func (r register) after(s step, o heard) (bool, register) {
	next := r
	switch s.Kind {
	case stepPut:
		next.Value = s.Value
	case stepRemove:
		next.Value = ""
		if o.Refused {
			return r.Value == "", r
		}
		if r.Value == "" {
			return o.Unknown, r // unknown: it will be refused
		}
	case stepCreate: // boots nobody by itself: the generation has no say
		if r.Value != "" && r.Value != s.Value {
			return o.Refused || o.Unknown, r
		}
		return !o.Refused, register{Value: s.Value}
	case stepRead:
		switch {
		case r.Value != o.Value:
			return false, r
		case o.Generation == 0 || r.Value == "":
			return true, r
		case r.Guessed:
			return o.Generation >= r.Generation, register{Value: r.Value, Generation: o.Generation}
		}
		return o.Generation == r.Generation, r
	case stepPresent:
		return r.Value != "", r
	}
	changed := next.Value != r.Value
	switch {
	case o.Unknown && changed:
		next.Generation, next.Guessed = r.Generation+1, true
		return true, next
	case o.Unknown:
		return true, r
	case o.Told && o.Changed != changed:
		return false, r
	case !changed:
		return o.Generation >= r.Generation, r
	}
	next.Generation, next.Guessed = o.Generation, false
	return o.Generation > r.Generation, next
}

// history is what several clients did, and heard.
type history struct {
	began time.Time

	mu    sync.Mutex
	steps map[string][]porcupine.Operation // by key
	count map[string]int                   // operations by kind and outcome, for the report
}

func newHistory() *history {
	return &history{began: time.Now(), steps: map[string][]porcupine.Operation{}, count: map[string]int{}}
}

// now is the time since the history began, in nanoseconds.
func (h *history) now() int64 { return int64(time.Since(h.began)) }

// never is when an operation returns whose outcome is not known.
const never = math.MaxInt64

// record notes one step of an operation that began at call and has just returned.
func (h *history) record(client int, call int64, s step, o heard) {
	end := h.now()
	if o.Unknown {
		end = never
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps[s.Key] = append(h.steps[s.Key], porcupine.Operation{ClientId: client, Input: s, Call: call, Output: o, Return: end})
}

// note counts an operation for the report.
func (h *history) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[what]++
}

// keys in order, so that reports are.
func (h *history) keys() []string {
	var keys []string
	for key := range h.steps {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// checkTimeLimit is how long one key may take. They take milliseconds.
const checkTimeLimit = 60 * time.Second

// Check checks every key. No client may be recording any more.
func (h *history) Check(t testing.TB) {
	t.Helper()
	began, steps, unknown := time.Now(), 0, 0
	for _, key := range h.keys() {
		operations := h.steps[key]
		steps += len(operations)
		for _, o := range operations {
			if o.Output.(heard).Unknown {
				unknown++
			}
		}
		switch porcupine.CheckOperationsTimeout(registerModel, operations, checkTimeLimit) {
		case porcupine.Illegal:
			t.Errorf("the history of %s is not linearizable:\n%s", key, describe(operations))
		case porcupine.Unknown:
			t.Errorf("whether the history of %s (%d steps) is linearizable was not found out in %v", key, len(operations), checkTimeLimit)
		}
	}
	t.Logf("%d keys with %d steps (%d of unknown outcome) checked in %v", len(h.steps), steps, unknown, time.Since(began).Round(time.Millisecond))
}

func describe(operations []porcupine.Operation) string {
	sorted := slices.Clone(operations)
	slices.SortFunc(sorted, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var lines []string
	for _, o := range sorted {
		end := "?"
		if o.Return != never {
			end = time.Duration(o.Return).String()
		}
		lines = append(lines, fmt.Sprintf("%v to %s client %d %s", time.Duration(o.Call), end, o.ClientId, registerModel.DescribeOperation(o.Input, o.Output)))
	}
	return strings.Join(lines, "\n")
}

// disorder says where generations do not follow time: a change that was asked for when
// another was acknowledged has a higher one, and no two changes have the same.
func (h *history) disorder() (changes int, faults []string) {
	type change struct {
		call, end  int64
		generation uint64
		what       string
	}
	var all []change
	for _, key := range h.keys() {
		for _, o := range h.steps[key] {
			if out := o.Output.(heard); out.Told && out.Changed {
				all = append(all, change{o.Call, o.Return, out.Generation, registerModel.DescribeOperation(o.Input, out)})
			}
		}
	}
	slices.SortFunc(all, func(a, b change) int { return cmp.Compare(a.generation, b.generation) })
	// By generation, nothing may end before something earlier in the list has begun.
	latest := 0
	for i := 1; i < len(all); i++ {
		if all[i].generation == all[i-1].generation {
			faults = append(faults, fmt.Sprintf("two changes have generation %d: %s and %s", all[i].generation, all[i-1].what, all[i].what))
		}
		if all[i-1].call > all[latest].call {
			latest = i - 1
		}
		if all[i].end < all[latest].call {
			faults = append(faults, fmt.Sprintf("generations do not follow time: %s was done before %s began", all[i].what, all[latest].what))
		}
	}
	return len(all), faults
}

// losses says which keys have a value in the end that is of no write after which no
// other began that was acknowledged. A linearizable history with reads at its end has none; this
// says it in plain words.
func (h *history) losses(final map[string]string) (acknowledged int, faults []string) {
	for _, key := range h.keys() {
		latest := int64(-1) // when the latest acknowledged write of the key began
		var writes []porcupine.Operation
		for _, o := range h.steps[key] {
			s, out := o.Input.(step), o.Output.(heard)
			if s.Kind == stepRead || s.Kind == stepPresent || out.Refused {
				continue
			}
			writes = append(writes, o)
			if !out.Unknown {
				latest = max(latest, o.Call)
				acknowledged++
			}
		}
		possible := latest < 0 && final[key] == ""
		for _, o := range writes {
			possible = possible || o.Return >= latest && o.Input.(step).Value == final[key]
		}
		if !possible {
			faults = append(faults, fmt.Sprintf("an acknowledged write of %s is lost: in the end it is %q; it was\n%s", key, final[key], describe(writes)))
		}
	}
	return acknowledged, faults
}

// TestHistoryModel shows that histories which are wrong are found.
func TestHistoryModel(t *testing.T) {
	put := func(v string, g uint64) (step, heard) {
		return step{Key: "k", Kind: stepPut, Value: v}, heard{Told: true, Changed: true, Generation: g}
	}
	read := func(v string, g uint64) (step, heard) {
		return step{Key: "k", Kind: stepRead}, heard{Value: v, Generation: g}
	}
	unknown := func(kind stepKind, v string) (step, heard) {
		return step{Key: "k", Kind: kind, Value: v}, heard{Unknown: true}
	}
	remove := func(g uint64) (step, heard) {
		return step{Key: "k", Kind: stepRemove}, heard{Told: true, Changed: true, Generation: g}
	}
	create := func(v string, refused bool) (step, heard) {
		return step{Key: "k", Kind: stepCreate, Value: v}, heard{Refused: refused}
	}
	refusedRemove := func() (step, heard) {
		return step{Key: "k", Kind: stepRemove}, heard{Refused: true}
	}
	// One after the other; the end of an unknown one is open.
	sequence := func(add ...func() (step, heard)) *history {
		h := newHistory()
		for i, a := range add {
			s, o := a()
			h.record(0, int64(10*i), s, o)
			if last := &h.steps["k"][i]; last.Return != never {
				last.Return = int64(10*i + 5)
			}
		}
		return h
	}
	with := func(f func(string, uint64) (step, heard), v string, g uint64) func() (step, heard) {
		return func() (step, heard) { return f(v, g) }
	}
	open := func(kind stepKind, v string) func() (step, heard) {
		return func() (step, heard) { return unknown(kind, v) }
	}
	gone := func(g uint64) func() (step, heard) { return func() (step, heard) { return remove(g) } }
	made := func(v string, refused bool) func() (step, heard) {
		return func() (step, heard) { return create(v, refused) }
	}
	for name, c := range map[string]struct {
		history *history
		legal   bool
	}{
		"read what was put":                 {sequence(with(put, "a", 1), with(read, "a", 1)), true},
		"stale read":                        {sequence(with(put, "a", 1), with(put, "b", 2), with(read, "a", 0)), false},
		"lost write":                        {sequence(with(put, "a", 1), with(read, "", 0)), false},
		"generation falls":                  {sequence(with(put, "a", 2), with(put, "b", 1)), false},
		"generation of a read is another":   {sequence(with(put, "a", 1), with(read, "a", 2)), false},
		"unknown happens late":              {sequence(open(stepPut, "a"), with(read, "", 0), with(read, "a", 7)), true},
		"unknown does not happen":           {sequence(open(stepPut, "a"), with(put, "b", 1), with(read, "b", 1)), true},
		"unknown happens and is undone":     {sequence(open(stepPut, "a"), with(read, "a", 0), with(read, "", 0)), false},
		"value out of nowhere":              {sequence(with(put, "a", 1), with(read, "b", 0)), false},
		"removed twice":                     {sequence(with(put, "a", 1), gone(2), gone(3)), false},
		"removed and refused":               {sequence(with(put, "a", 1), gone(2), refusedRemove), true},
		"refused though present":            {sequence(with(put, "a", 1), refusedRemove), false},
		"unknown removal explains":          {sequence(with(put, "a", 1), open(stepRemove, ""), refusedRemove), true},
		"created twice with other content":  {sequence(made("a", false), made("b", false)), false},
		"second content refused":            {sequence(made("a", false), made("b", true), made("a", false)), true},
		"refused without another content":   {sequence(made("a", true)), false},
		"unknown creation explains refusal": {sequence(open(stepCreate, "b"), made("a", true), with(read, "b", 0)), true},
	} {
		if got := porcupine.CheckOperations(registerModel, c.history.steps["k"]); got != c.legal {
			t.Errorf("%s: linearizable is %v, want %v:\n%s", name, got, c.legal, describe(c.history.steps["k"]))
		}
	}
	for name, c := range map[string]struct {
		history *history
		final   string
		lost    bool
	}{
		"the latest":               {sequence(with(put, "a", 1), with(put, "b", 2)), "b", false},
		"the one before":           {sequence(with(put, "a", 1), with(put, "b", 2)), "a", true},
		"nothing":                  {sequence(with(put, "a", 1)), "", true},
		"removed":                  {sequence(with(put, "a", 1), gone(2)), "", false},
		"not removed after all":    {sequence(with(put, "a", 1), gone(2)), "a", true},
		"unknown that came later":  {sequence(open(stepPut, "a"), with(put, "b", 1)), "a", false},
		"unknown that never came":  {sequence(open(stepPut, "a")), "", false},
		"refused that came anyway": {sequence(made("a", false), made("b", true)), "b", true},
	} {
		if _, faults := c.history.losses(map[string]string{"k": c.final}); (len(faults) > 0) != c.lost {
			t.Errorf("%s: lost is %v, want %v", name, faults, c.lost)
		}
	}
	for name, c := range map[string]struct {
		history  *history
		disorder bool
	}{
		"rising":      {sequence(with(put, "a", 1), with(put, "b", 2), with(put, "c", 5)), false},
		"falling":     {sequence(with(put, "a", 1), with(put, "b", 3), with(put, "c", 2)), true},
		"twice":       {sequence(with(put, "a", 1), with(put, "b", 1)), true},
		"falls later": {sequence(with(put, "a", 5), with(put, "b", 6), with(put, "c", 7), with(put, "d", 1)), true},
	} {
		if _, faults := c.history.disorder(); (len(faults) > 0) != c.disorder {
			t.Errorf("%s: disorder is %v, want %v", name, faults, c.disorder)
		}
	}
}

package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"eboot"
)

var planKey = eboot.PlanKey{Manifest: digest("m"), Script: "releases/1/start.boot"}

func planFile(path string, size int64) eboot.PlanFile {
	return eboot.PlanFile{Path: path, Size: size}
}

func learnAll(f *Fleet, key eboot.PlanKey, paths ...string) {
	for _, p := range paths {
		f.Learn(key, p, 100)
	}
}

func TestPlan(t *testing.T) {
	f := open(t, Options{})
	if p := f.Plan(planKey); p != nil {
		t.Errorf("nothing was learned: %q", p)
	}
	embedded := planKey
	embedded.Embedded = true
	learnAll(f, planKey, "b", "a", "c/d", "a", "b")
	learnAll(f, embedded, "e")
	if p := f.Plan(planKey); !slices.Equal(p, []string{"b", "a", "c/d"}) {
		t.Errorf("%q", p)
	}
	if p := f.Plan(embedded); !slices.Equal(p, []string{"e"}) {
		t.Errorf("embedded: %q", p)
	}
	if entered := f.MergePlan(planKey, []eboot.PlanFile{planFile("z", 1), planFile("a", 1), planFile("/x", 1), planFile("y", 2), planFile("z", 1)}); entered != 2 {
		t.Errorf("%d entered", entered)
	}
	elsewhere := eboot.PlanKey{Manifest: digest("other"), Script: "s.boot"}
	if entered := f.MergePlan(elsewhere, []eboot.PlanFile{planFile("x", 1)}); entered != 1 {
		t.Errorf("%d entered", entered)
	}
	for _, none := range [][]eboot.PlanFile{nil, {planFile("../x", 1)}} {
		if entered := f.MergePlan(eboot.PlanKey{Manifest: digest("none"), Script: "s.boot"}, none); entered != 0 {
			t.Errorf("%v: %d entered", none, entered)
		}
	}
	want := []eboot.LearnedPlan{
		{PlanKey: planKey, Files: []eboot.PlanFile{planFile("b", 100), planFile("a", 100), planFile("c/d", 100), planFile("z", 1), planFile("y", 2)}},
		{PlanKey: embedded, Files: []eboot.PlanFile{planFile("e", 100)}},
		{PlanKey: elsewhere, Files: []eboot.PlanFile{planFile("x", 1)}},
	}
	f.Plan(planKey) // each is used once more, in this order
	f.Plan(embedded)
	f.Plan(elsewhere)
	if got := f.Plans(); !reflect.DeepEqual(got, want) || f.Stats().Plans != 3 {
		t.Errorf("%+v", got)
	}
	if !f.Learn(elsewhere, "y", 1) || f.Learn(elsewhere, "y", 1) || f.Learn(elsewhere, "/y", 1) {
		t.Error("one file is new, once")
	}
	f.KeepPlans(func(d eboot.Digest) bool { return d == planKey.Manifest })
	if got := f.Plans(); !reflect.DeepEqual(got, want[:2]) {
		t.Errorf("kept %+v", got)
	}
}

// What is learned outlives the buffer that it was read into.
func TestPlanKeepsNoBuffer(t *testing.T) {
	f := open(t, Options{})
	large := strings.Repeat("x", 1<<20)
	key := eboot.PlanKey{Manifest: digest("m"), Script: large[:4]}
	f.Learn(key, large[:8], 1)
	p := f.Plans()[0]
	if unsafe.StringData(p.Script) == unsafe.StringData(large) || unsafe.StringData(p.Files[0].Path) == unsafe.StringData(large) {
		t.Errorf("%+v keeps what it was cut from", p)
	}
}

func TestPlanLeavesOut(t *testing.T) {
	f := open(t, Options{})
	for path, size := range map[string]int64{
		"": 1, ".": 1, "/etc/passwd": 1, "..": 1, "../x": 1, "a/../b": 1, "a//b": 1, "a/": 1, "./a": 1, "a\nb": 1, "a\x00": 1, "\xff": 1,
		strings.Repeat("x", 4097): 1, "negative": -1, "large": standardPlans.bytes + 1, "huge": math.MaxInt64,
	} {
		f.Learn(planKey, path, size)
		f.MergePlan(planKey, []eboot.PlanFile{planFile(path, size)})
	}
	for _, key := range []eboot.PlanKey{
		{Script: "s.boot"}, {Manifest: digest("m")}, {Manifest: digest("m"), Script: "/s.boot"}, {Manifest: digest("m"), Script: strings.Repeat("x", 4097)},
	} {
		f.Learn(key, "a", 1)
		f.MergePlan(key, []eboot.PlanFile{planFile("a", 1)})
	}
	if got := f.Plans(); len(got) != 0 || f.plans.changedSince(0) {
		t.Errorf("%+v", got)
	}
	whole := strings.Repeat("x", 4096)
	f.Learn(planKey, whole, standardPlans.bytes)
	if p := f.Plan(planKey); !slices.Equal(p, []string{whole}) {
		t.Errorf("%d files", len(p))
	}
}

func TestPlansAreBounded(t *testing.T) {
	f := open(t, Options{})
	key := func(i int) eboot.PlanKey { return eboot.PlanKey{Manifest: digest(fmt.Sprint(i)), Script: "s.boot"} }
	for i := range 70 {
		f.Learn(key(i), "a", 1)
		f.Plan(key(0)) // used
	}
	if n := f.Stats().Plans; n != 64 {
		t.Errorf("%d plans", n)
	}
	for i, want := range map[int]bool{0: true, 1: false, 6: false, 7: true, 69: true} {
		if got := f.Plan(key(i)) != nil; got != want {
			t.Errorf("plan %d known: %t", i, got)
		}
	}
	if entered := f.MergePlan(key(1), []eboot.PlanFile{planFile("a", 1)}); entered != 0 {
		t.Error("another server's plan took the place of one learned here")
	}

	// What is full takes nothing more, and says so at every boot.
	for range 2 {
		for i := range 2500 {
			f.Learn(key(0), fmt.Sprintf("lib/%d.beam", i), 100)
		}
	}
	if p := f.Plan(key(0)); len(p) != 2000 || p[0] != "a" || p[1] != "lib/0.beam" || p[1999] != "lib/1998.beam" {
		t.Errorf("%d files: %q …", len(p), p[:2])
	}
	version := f.plans.version
	if f.Learn(key(0), "b", 0) || f.MergePlan(key(0), []eboot.PlanFile{planFile("b", 0)}) != 0 || f.plans.changedSince(version) {
		t.Error("a plan with all its files took another")
	}
	f.Learn(key(7), "large", 8<<20-2)
	if f.Learn(key(7), "b", 2) || !f.Learn(key(7), "c", 1) || f.Learn(key(7), "d", 1) {
		t.Error("a plan took another size than there is room for")
	}
	if entered := f.MergePlan(key(7), []eboot.PlanFile{planFile("b", 1), planFile("empty", 0)}); entered != 1 {
		t.Errorf("%d files were entered where there is no room", entered)
	}
	for i := range 100 {
		f.Learn(key(69), strings.Repeat("x", 4000)+fmt.Sprint(i), 1)
	}
	if p := f.Plan(key(69)); len(strings.Join(p, "")) > standardPlans.text || len(p) < 60 {
		t.Errorf("%d long paths", len(p))
	}
}

// modelPlan is a plan as simple as can be: its files in the order learned.
type modelPlan []eboot.PlanFile

func (m modelPlan) has(path string) bool {
	return slices.ContainsFunc(m, func(f eboot.PlanFile) bool { return f.Path == path })
}

func (m modelPlan) sums() (files int, size int64, text int) {
	for _, f := range m {
		size += f.Size
		text += len(f.Path)
	}
	return len(m), size, text
}

func (m modelPlan) within(l planLimits) bool {
	files, size, text := m.sums()
	return files <= l.files && size <= l.bytes && text <= l.text
}

// with returns the plan after file came, and whether it is in it now and was not.
func (m modelPlan) with(l planLimits, file eboot.PlanFile) (modelPlan, bool) {
	next := append(slices.Clone(m), file)
	if l.check(file) != nil || m.has(file.Path) || !next.within(l) {
		return m, false
	}
	return next, true
}

func TestPlanModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := planLimits{plans: 3, files: 4, bytes: 50, text: 12}
		table := newPlanTable(limits)
		model := map[eboot.PlanKey]modelPlan{}
		var recent []eboot.PlanKey // least recently used first
		use := func(key eboot.PlanKey) {
			recent = append(slices.DeleteFunc(recent, func(k eboot.PlanKey) bool { return k == key }), key)
		}
		sizes := map[string]int64{}
		drawFile := func() eboot.PlanFile {
			path := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f/g", "h/i/jkl", "/x", "much/too/long"}).Draw(t, "path")
			if _, known := sizes[path]; !known {
				sizes[path] = rapid.Int64Range(-1, 60).Draw(t, "size")
			}
			return planFile(path, sizes[path])
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			key := eboot.PlanKey{Manifest: digest(rapid.SampledFrom([]string{"1", "2", "3", "4", "5"}).Draw(t, "bundle")), Script: "s.boot"}
			p := model[key]
			version := table.version
			switch rapid.SampledFrom([]string{"learn", "learn", "learn", "learn", "merge", "paths", "keep", "save"}).Draw(t, "step") {
			case "learn":
				file := drawFile()
				changed := table.learn(key, file.Path, file.Size)
				next, want := p.with(limits, file)
				if changed != want {
					t.Fatalf("learn %v: changed %t", file, changed)
				}
				if len(next) == 0 {
					break
				}
				if p == nil && len(model) == limits.plans {
					delete(model, recent[0])
					recent = recent[1:]
				}
				model[key] = next
				use(key)
			case "merge":
				var files []eboot.PlanFile
				for range rapid.IntRange(0, 3).Draw(t, "files") {
					files = append(files, drawFile())
				}
				entered, want := table.merge(key, files), 0
				for _, file := range files {
					if p == nil && len(model) == limits.plans {
						break
					}
					next, added := p.with(limits, file)
					if !added {
						continue
					}
					if p == nil {
						use(key)
					}
					p, model[key] = next, next
					want++
				}
				if entered != want {
					t.Fatalf("merge %v: %d entered, want %d", files, entered, want)
				}
			case "paths":
				if (table.paths(key) == nil) != (p == nil) {
					t.Fatal("plan known to one only")
				}
				if p != nil {
					use(key)
				}
			case "keep":
				wanted := rapid.Bool().Draw(t, "wanted") // all others are
				table.keep(func(d eboot.Digest) bool { return wanted || d != key.Manifest })
				if p != nil && !wanted {
					delete(model, key)
					recent = slices.DeleteFunc(recent, func(k eboot.PlanKey) bool { return k == key })
				}
			case "save": // and load
				var out bytes.Buffer
				saved, err := table.encode(&out)
				if err != nil {
					t.Fatal(err)
				}
				plans, err := decodePlans(out.Bytes())
				if err != nil || saved != version {
					t.Fatalf("version %d, want %d: %v", saved, version, err)
				}
				table = newPlanTable(limits)
				table.take(plans)
				version = table.version
			}
			plans, now := table.all()
			if len(plans) != len(model) || len(plans) > limits.plans {
				t.Fatalf("%d plans, want %d", len(plans), len(model))
			}
			for i, plan := range plans {
				m := model[plan.PlanKey]
				if plan.PlanKey != recent[i] || m == nil || !slices.Equal(plan.Files, m) || !m.within(limits) {
					t.Fatalf("%+v, want %+v", plan, m)
				}
				inner := table.byKey[plan.PlanKey]
				if files, size, text := m.sums(); len(inner.byPath) != files || inner.bytes != size || inner.text != text {
					t.Fatalf("%+v does not add up to %d, %d, %d", inner, files, size, text)
				}
			}
			if now < version {
				t.Fatalf("version %d after %d", now, version)
			}
		}
	})
}

func TestPlansSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "plans")
		f := open(t, Options{PlanFile: path})
		stop := run(t, f)
		synctest.Wait() // Run sleeps
		learnAll(f, planKey, "b", "a<&>")
		advance(writeAfter - time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("written before its time: %v", err)
		}
		advance(2 * time.Millisecond)
		synctest.Wait()
		again := open(t, Options{PlanFile: path})
		if got := again.Plans(); !reflect.DeepEqual(got, f.Plans()) || len(got) != 1 {
			t.Errorf("on disk: %+v", got)
		}
		if again.plans.changedSince(0) {
			t.Error("what was just read is to be written")
		}

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		learnAll(f, planKey, "b", "a<&>") // nothing new
		f.Plan(planKey)
		f.KeepPlans(func(eboot.Digest) bool { return true })
		advance(time.Hour)
		synctest.Wait()
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("written without a change: %v", err)
		}

		f.MergePlan(planKey, []eboot.PlanFile{planFile("c", 3)})
		advance(writeAfter + time.Millisecond)
		synctest.Wait()
		if p := open(t, Options{PlanFile: path}).Plan(planKey); !slices.Equal(p, []string{"b", "a<&>", "c"}) {
			t.Errorf("on disk after a merge: %q", p)
		}
		f.KeepPlans(func(eboot.Digest) bool { return false })
		if err := stop(); err != nil { // writes at once
			t.Fatal(err)
		}
		if got := open(t, Options{PlanFile: path}).Plans(); len(got) != 0 {
			t.Errorf("on disk at the end: %+v", got)
		}
	})
}

func TestDamagedPlanFile(t *testing.T) {
	var good bytes.Buffer
	if err := encodePlans(&good, []eboot.LearnedPlan{{PlanKey: planKey, Files: []eboot.PlanFile{planFile("a", 1)}}}); err != nil {
		t.Fatal(err)
	}
	sealed := func(body string) string { return header(planFormat, []byte(body)) + body }
	for name, content := range map[string]string{
		"empty": "", "cut": good.String()[:good.Len()-1], "pins": header(pinFormat, nil),
		"no files": sealed(`{"manifest":"` + digest("m").String() + `","script":"s.boot","files":[]}` + "\n"),
		"bad key":  sealed(`{"script":"s.boot","files":[{"path":"a","size":1}]}` + "\n"),
		"bad path": sealed(`{"manifest":"` + digest("m").String() + `","script":"s.boot","files":[{"path":"../a","size":1}]}` + "\n"),
		"bad size": sealed(`{"manifest":"` + digest("m").String() + `","script":"s.boot","files":[{"path":"a","size":-1}]}` + "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "plans")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := open(t, Options{PlanFile: path})
			if plans := f.Plans(); len(plans) != 0 {
				t.Errorf("plans of a damaged file: %+v", plans)
			}
			if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != content {
				t.Errorf("kept aside: %q, %v", kept, err)
			}
		})
	}
	if _, err := New(Options{PlanFile: t.TempDir()}); err == nil {
		t.Error("a directory was taken for a plan file")
	}
}

// The largest plans that can be learned fit into the file.
func TestFullPlanFile(t *testing.T) {
	table := newPlanTable(standardPlans)
	key := eboot.PlanKey{Manifest: digest("m"), Script: strings.Repeat(`"`, 4096)}
	for i := range standardPlans.files {
		table.learn(key, strings.Repeat(`\`, 127)+fmt.Sprint(1000+i), 1)
	}
	var out bytes.Buffer
	if _, err := table.encode(&out); err != nil {
		t.Fatal(err)
	}
	if n := len(table.paths(key)); n != standardPlans.files || out.Len()*standardPlans.plans > maxPlanFile {
		t.Errorf("%d files in %d bytes", n, out.Len())
	}
}

// A file gives plans within their bounds that are written the same way again, or ErrDamaged.
func FuzzPlans(f *testing.F) {
	var some bytes.Buffer
	if err := encodePlans(&some, []eboot.LearnedPlan{
		{PlanKey: planKey, Files: []eboot.PlanFile{planFile("a", 1), planFile("b/c", 8<<20)}},
		{PlanKey: eboot.PlanKey{Manifest: digest("n"), Script: "é.boot", Embedded: true}, Files: []eboot.PlanFile{planFile("\u2028<", 0)}},
	}); err != nil {
		f.Fatal(err)
	}
	f.Add(some.Bytes(), true)
	_, body, _ := bytes.Cut(some.Bytes(), []byte{'\n'})
	f.Add(body, false)
	f.Add(append(body, body...), false)
	f.Add([]byte("null\n"), false)
	f.Add([]byte(`{"manifest":"","script":"","files":[{"path":"a","size":1e400}]}`), false)
	f.Fuzz(func(t *testing.T, content []byte, whole bool) {
		if !whole { // past the digest, which hides the lines from the fuzzer
			content = append([]byte(header(planFormat, content)), content...)
		}
		plans, err := decodePlans(content)
		if err != nil {
			if !errors.Is(err, eboot.ErrDamaged) {
				t.Fatalf("error %v does not wrap ErrDamaged", err)
			}
			return
		}
		once, twice := newPlanTable(standardPlans), newPlanTable(standardPlans)
		once.take(plans)
		if len(once.byKey) > standardPlans.plans {
			t.Fatalf("%d plans", len(once.byKey))
		}
		for _, p := range once.byKey {
			if !modelPlan(p.files).within(standardPlans) || len(p.files) == 0 {
				t.Fatalf("%d files, %d bytes, %d of paths", len(p.files), p.bytes, p.text)
			}
		}
		var out bytes.Buffer
		if _, err := once.encode(&out); err != nil {
			t.Fatal(err)
		}
		back, err := decodePlans(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		twice.take(back)
		a, _ := once.all()
		b, _ := twice.all()
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v and back %+v", a, b)
		}
	})
}

func TestPlansConcurrently(t *testing.T) {
	f := open(t, Options{PlanFile: filepath.Join(t.TempDir(), "plans")})
	stop := run(t, f)
	ended := make(chan struct{})
	const workers = 8
	for w := range workers {
		go func() {
			defer func() { ended <- struct{}{} }()
			for i := range 300 {
				key := eboot.PlanKey{Manifest: digest(fmt.Sprint((w + i) % 5)), Script: "s.boot"}
				f.Learn(key, fmt.Sprintf("lib/%d", i), 1000)
				f.Plan(key)
				if i%50 == 0 {
					f.KeepPlans(func(d eboot.Digest) bool { return d != key.Manifest })
					for _, p := range f.Plans() {
						f.MergePlan(p.PlanKey, p.Files)
					}
				}
			}
		}()
	}
	for range workers {
		<-ended
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, Options{PlanFile: f.options.PlanFile}).Plans(); len(got) != len(f.Plans()) {
		t.Errorf("%d plans on disk", len(got))
	}
}

func BenchmarkLearnAgain(b *testing.B) {
	f, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	f.Learn(planKey, "lib/kernel/ebin/code.beam", 1000)
	b.ReportAllocs()
	for b.Loop() {
		f.Learn(planKey, "lib/kernel/ebin/code.beam", 1000)
	}
}

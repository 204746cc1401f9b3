package main

import (
	"testing"

	"eboot"
	"eboot/api"
)

func TestDiffText(t *testing.T) {
	d := api.BundleDiff{From: eboot.Ref{Name: "a", Version: "1"}, To: eboot.Ref{Name: "a", Version: "2"}, ERTS: "15.0"}
	for name, tc := range map[string]struct {
		change func(*api.BundleDiff)
		want   string
	}{
		"nothing":    {func(*api.BundleDiff) {}, "nothing that a slave would notice\n"},
		"recompiled": {func(d *api.BundleDiff) { d.Recompiled = 3 }, "nothing that a slave would notice\nmodules compiled anew with the same code: 3\n"},
		"applications": {func(d *api.BundleDiff) {
			d.Applications = []api.ApplicationDiff{
				{Name: "x", Change: api.Changed, From: "1", To: "2", Modules: []api.ModuleDiff{{Module: "m", Change: api.Changed}, {Module: "n", Change: api.Removed}}},
				{Name: "y", Change: api.Added, To: "1", Modules: make([]api.ModuleDiff, 4)},
				{Name: "z", Change: api.Removed},
				{Name: "plain", Change: api.Changed},
			}
		}, "application ~ x 1 -> 2\n  module ~ m\n  module - n\napplication + y 1, modules: 4\napplication - z, modules: 0\napplication ~ plain -\n"},
		"files": {func(d *api.BundleDiff) {
			d.Files = []api.FileDiff{{Path: "p", Change: api.Added}, {Path: "q", Change: api.Changed}}
			d.SysConfigChanged = true
		}, "file + p\nfile ~ q\nsys.config: changed\n"},
		"boot script": {func(d *api.BundleDiff) {
			d.BootScript = api.BootScriptDiff{From: "r/1", To: "r/2", Changed: true, Lines: []string{"- {a}", "+ {b}"}, Warning: "9 more lines differ"}
		}, "boot script r/1 -> r/2:\n  - {a}\n  + {b}\n  9 more lines differ\n"},
		"unreadable script": {func(d *api.BundleDiff) {
			d.BootScript = api.BootScriptDiff{From: "r", To: "r", Changed: true, Warning: "no script"}
		}, "boot script r: changed; no script\n"},
		"equal script": {func(d *api.BundleDiff) { d.BootScript = api.BootScriptDiff{From: "r", To: "r", Changed: true} }, "boot script r: other bytes, the same instructions\n"},
	} {
		diff := d
		tc.change(&diff)
		if got := diffText(diff); got != "a@1 -> a@2 for ERTS 15.0\n"+tc.want {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

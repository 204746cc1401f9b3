package eboot_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Threats of docs/SECURITY.md, each with the tests that show what is said of it.
const threats = 23

var (
	threatRow = regexp.MustCompile(`(?m)^\| S(\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`)
	// threatTests are names of tests and the package that has them: `TestA`, `TestB` (api)
	threatTests = regexp.MustCompile("((?:`[^`]+`(?:, )?)+) \\(([a-z/0-9.]+)\\)")
	quoted      = regexp.MustCompile("`([^`]+)`")
)

// Every threat has a row, and every test that a row names exists: the table cannot promise
// what nobody looks at.
func TestThreatsAreTested(t *testing.T) {
	text, err := os.ReadFile("docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, row := range threatRow.FindAllStringSubmatch(string(text), -1) {
		id := "S" + row[1]
		if seen[id] {
			t.Errorf("%s has two rows", id)
		}
		seen[id] = true
		groups := threatTests.FindAllStringSubmatch(row[4], -1)
		if len(groups) == 0 {
			t.Errorf("%s names no test", id)
		}
		for _, group := range groups {
			for _, name := range quoted.FindAllStringSubmatch(group[1], -1) {
				if !testExists(t, group[2], name[1]) {
					t.Errorf("%s: package %s has no %s", id, group[2], name[1])
				}
			}
		}
		if rest := strings.Trim(threatTests.ReplaceAllString(row[4], ""), " ;,"); rest != "" {
			t.Errorf("%s: %q is not of the form `Test` (package)", id, rest)
		}
	}
	for i := range threats {
		if id := fmt.Sprintf("S%d", i+1); !seen[id] {
			t.Errorf("%s has no row", id)
		}
	}
	if testExists(t, "fsm", "TestThatDoesNotExist") || testExists(t, "cmd/eboot", "TestScripts/nothing") {
		t.Error("a test that does not exist is found")
	}
}

// testExists looks for a test, or for a script of one, in a package; "eboot" is the root.
func testExists(t *testing.T, pkg, name string) bool {
	t.Helper()
	dir := pkg
	if pkg == "eboot" {
		dir = "."
	}
	name, script, _ := strings.Cut(name, "/")
	if script != "" {
		if _, err := os.Stat(filepath.Join(dir, "testdata", "script", script+".txtar")); err != nil {
			return false
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/yaml"
)

// The keys of argocd-cm that hold a health rule, before GROUP_KIND.
const argoKey = "resource.customizations.health."

// argo has the health rules of a ConfigMap, by GROUP_KIND.
type argo map[string]string

func argoRules(file string) (argo, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var config struct {
		Metadata struct{ Name string }
		Data     map[string]string
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	rules := argo{}
	for key, rule := range config.Data {
		if what, found := strings.CutPrefix(key, argoKey); found {
			rules[what] = rule
		}
	}
	return rules, nil
}

// health runs the rule as Argo CD does: without the standard libraries but those it opens, for a second at most, with the
// object as `obj`; the rule returns a table.
func (rules argo) health(o object) (Health, error) {
	group, _, _ := strings.Cut(o.text("apiVersion"), "/")
	rule, found := rules[group+"_"+o.text("kind")]
	if !found {
		return Health{}, errors.New("no rule speaks of this kind")
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		call := lua.P{Fn: state.NewFunction(open), Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return Health{}, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	text, err := json.Marshal(o.content)
	if err != nil {
		return Health{}, err
	}
	value, err := luajson.Decode(state, text)
	if err != nil {
		return Health{}, err
	}
	state.SetGlobal("obj", value)
	if err := state.DoString(rule); err != nil {
		return Health{}, err
	}
	if kind := state.Get(-1).Type(); kind != lua.LTTable {
		return Health{}, fmt.Errorf("the rule returned a %s, not a table", kind)
	}
	if text, err = luajson.Encode(state.Get(-1)); err != nil {
		return Health{}, err
	}
	var result Health
	if err := json.Unmarshal(text, &result); err != nil {
		return Health{}, err
	}
	switch result.Status {
	case "Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown":
		return result, nil
	}
	return Health{}, fmt.Errorf("Argo CD knows no status %q", result.Status)
}

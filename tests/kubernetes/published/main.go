// Checks of manifests/ against what other projects publish: their CRDs, and the code with which they run the rules that
// manifests/ gives them.
//
//	published crds                        prints the CRDs named in crds.txt
//	published argo CONFIGMAP              runs Argo CD's health rules on the objects of standard input
//	published flux KUSTOMIZATION          runs Flux' health rules on them
//	published compose FILE                loads a compose file, strictly
//	published promql FILE...              checks the queries of PrometheusRules and dashboards, prints their metrics
//	published json                        turns the YAML documents of standard input into JSON
//
// Objects come as JSON, one after the other; each answer is one line of JSON.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "published:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 1 && arguments[0] == "crds":
		return crds(os.Stdout)
	case len(arguments) == 1 && arguments[0] == "json":
		return toJSON(os.Stdin, os.Stdout)
	}
	if len(arguments) < 2 {
		return errors.New("usage: published crds | json | argo FILE | flux FILE | compose FILE | promql FILE...")
	}
	files := arguments[1:]
	switch arguments[0] {
	case "argo":
		rules, err := argoRules(files[0])
		if err != nil {
			return err
		}
		return answer(rules.health)
	case "flux":
		rules, err := fluxRules(files[0])
		if err != nil {
			return err
		}
		return answer(rules.health)
	case "compose":
		return compose(files[0])
	case "promql":
		return promql(files)
	}
	return fmt.Errorf("there is no check %q", arguments[0])
}

// Health is what a GitOps tool makes of an object.
type Health struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

// answer writes what `health` makes of every object of standard input.
func answer(health func(object) (Health, error)) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o object
		if err := in.Decode(&o.content); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		found, err := health(o)
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.text("kind"), o.name(), err)
		}
		found.Kind, found.Name = o.text("kind"), o.name()
		if err := out.Encode(found); err != nil {
			return err
		}
	}
}

// toJSON writes every YAML document as one line.
func toJSON(in io.Reader, out io.Writer) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return err
		}
		if string(line) == "null" { // comments only
			continue
		}
		if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
			return err
		}
	}
}

// object is a Kubernetes object as JSON has it.
type object struct{ content map[string]any }

func (o object) text(field string) string {
	value, _ := o.content[field].(string)
	return value
}

func (o object) name() string {
	metadata, _ := o.content["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	return name
}

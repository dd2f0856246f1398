//! Data forms as XML.

use waystation_xml::Element;

use super::{
    DataForm, Datatype, Field, FieldKind, FieldOption, FormError, FormKind, MAX_FIELDS, MAX_VALUES,
    NS_DATA_FORMS, NS_VALIDATE, from_name,
};

impl DataForm {
    /// Reads a form.
    ///
    /// # Errors
    /// [`FormError`] when it is no form, malformed, or larger than the limits of this module.
    pub fn parse(element: &Element) -> Result<Self, FormError> {
        if !element.is("x", NS_DATA_FORMS) {
            return Err(FormError::Malformed("not a data form"));
        }
        let kind = element.attr("type").and_then(|name| from_name(&FormKind::ALL, name));
        let mut form = Self::new(kind.ok_or(FormError::Malformed("the form's type is missing or unknown"))?);
        let mut budget = Budget::default();
        for child in element.children().filter(|child| child.namespace() == NS_DATA_FORMS) {
            match child.name() {
                "title" => form.title = Some(child.text()),
                "instructions" => form.instructions.push(child.text()),
                "field" => form.fields.push(Field::parse(child, &mut budget)?),
                "reported" => form.reported = row(child, &mut budget)?,
                "item" => form.items.push(row(child, &mut budget)?),
                _ => {}
            }
        }
        unique(&form.fields)?;
        Ok(form)
    }

    /// The form as XML.
    pub fn to_element(&self) -> Element {
        let mut out = Element::new("x", NS_DATA_FORMS).with_attr("type", self.kind.as_str());
        out.extend_text("title", self.title.as_ref());
        out.extend_text("instructions", &self.instructions);
        let row = |name, fields: &[Field]| {
            Element::new(name, NS_DATA_FORMS).with_children(fields.iter().map(Field::to_element))
        };
        let mut out = out.with_children(self.fields.iter().map(Field::to_element));
        if !self.reported.is_empty() {
            out.push(row("reported", &self.reported));
        }
        out.with_children(self.items.iter().map(|fields| row("item", fields)))
    }
}

impl Field {
    fn parse(element: &Element, budget: &mut Budget) -> Result<Self, FormError> {
        budget.field()?;
        let kind = element
            .attr("type")
            .map(|name| from_name(&FieldKind::ALL, name).unwrap_or(FieldKind::TextSingle));
        let mut field = Self {
            var: element.attr("var").filter(|var| !var.is_empty()).map(str::to_owned),
            kind,
            label: element.attr("label").map(str::to_owned),
            ..Self::default()
        };
        if field.var.is_none() && kind != Some(FieldKind::Fixed) {
            return Err(FormError::Malformed("a field has no name"));
        }
        for child in element.children().filter(|child| child.namespace() == NS_DATA_FORMS) {
            match child.name() {
                "desc" => field.desc = Some(child.text()),
                "required" => field.required = true,
                "value" => {
                    budget.value()?;
                    field.values.push(child.text());
                }
                "option" => {
                    budget.value()?;
                    let mut values = child.children().filter(|value| value.is("value", NS_DATA_FORMS));
                    let (Some(value), None) = (values.next(), values.next()) else {
                        return Err(FormError::Malformed("an option does not have exactly one value"));
                    };
                    let label = child.attr("label").map(str::to_owned);
                    field.options.push(FieldOption { label, value: value.text() });
                }
                _ => {}
            }
        }
        Ok(field)
    }

    fn to_element(&self) -> Element {
        let mut out = Element::new("field", NS_DATA_FORMS);
        if let Some(var) = &self.var {
            out.set_attr("var", var);
        }
        if let Some(kind) = self.kind {
            out.set_attr("type", kind.as_str());
        }
        if let Some(label) = &self.label {
            out.set_attr("label", label);
        }
        out.extend_text("desc", self.desc.as_ref());
        if self.required {
            out.push(Element::new("required", NS_DATA_FORMS));
        }
        if let Some(validate) = self.validate() {
            out.push(validate);
        }
        out.extend_text("value", &self.values);
        for option in &self.options {
            let mut child = Element::new("option", NS_DATA_FORMS);
            if let Some(label) = &option.label {
                child.set_attr("label", label);
            }
            child.extend_text("value", [&option.value]);
            out.push(child);
        }
        out
    }

    /// The `<validate/>` element; `None` when there is nothing to say.
    fn validate(&self) -> Option<Element> {
        let datatype = match self.datatype {
            Datatype::String if !self.open => return None,
            Datatype::String => "xs:string",
            Datatype::Integer { .. } => "xs:integer",
            Datatype::Date => "xs:date",
            Datatype::Time => "xs:time",
            Datatype::DateTime => "xs:dateTime",
        };
        let method = match self.datatype {
            Datatype::Integer { min, max } if min.is_some() || max.is_some() => {
                let mut range = Element::new("range", NS_VALIDATE);
                if let Some(min) = min {
                    range.set_attr("min", min.to_string());
                }
                if let Some(max) = max {
                    range.set_attr("max", max.to_string());
                }
                range
            }
            _ if self.open => Element::new("open", NS_VALIDATE),
            _ => Element::new("basic", NS_VALIDATE),
        };
        Some(Element::new("validate", NS_VALIDATE).with_attr("datatype", datatype).with_child(method))
    }
}

fn row(element: &Element, budget: &mut Budget) -> Result<Vec<Field>, FormError> {
    // Rows without fields would otherwise be free.
    budget.field()?;
    element
        .children()
        .filter(|child| child.is("field", NS_DATA_FORMS))
        .map(|child| Field::parse(child, budget))
        .collect()
}

fn unique(fields: &[Field]) -> Result<(), FormError> {
    let mut names: Vec<_> = fields.iter().filter_map(|field| field.var.as_deref()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(FormError::Malformed("two fields have the same name"));
    }
    Ok(())
}

/// What a form may still hold.
struct Budget {
    fields: usize,
    values: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { fields: MAX_FIELDS, values: MAX_VALUES }
    }
}

impl Budget {
    fn field(&mut self) -> Result<(), FormError> {
        self.fields = self.fields.checked_sub(1).ok_or(FormError::TooLarge)?;
        Ok(())
    }

    fn value(&mut self) -> Result<(), FormError> {
        self.values = self.values.checked_sub(1).ok_or(FormError::TooLarge)?;
        Ok(())
    }
}

trait ExtendText {
    /// Adds a child with text for each of `texts`.
    fn extend_text<'a>(&mut self, name: &str, texts: impl IntoIterator<Item = &'a String>);
}

impl ExtendText for Element {
    fn extend_text<'a>(&mut self, name: &str, texts: impl IntoIterator<Item = &'a String>) {
        for text in texts {
            self.push(Element::new(name, NS_DATA_FORMS).with_text(text));
        }
    }
}
